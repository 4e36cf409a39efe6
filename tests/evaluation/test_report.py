"""The page: the verdict as given, the right answers by rule, nothing from outside, nothing unescaped, always whole."""

from __future__ import annotations

import errno
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hydralign.errors import DataError, StorageError
from hydralign.evaluation.report import LONGEST_TEXT, AnswerPair, Report, _number, write_report
from hydralign.evaluation.statistics import Difference, compare_paired

NAN = math.nan
VOID = {"meta", "line", "circle", "path", "use"}
HOSTILE = "</svg><script>alert('1')</script> \"a\" & &amp; {{ 7 * 7 }}\x00\x1b\x85\ud800 שלום\u202e"


class Page(HTMLParser):
    """Elements in order with their attributes, and the text of each class and tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[tuple[str, str]] = []
        self.texts: list[tuple[list[str], str]] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append((tag, dict(attrs).get("class") or ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(([name for pair in self.open for name in pair], data))

    def within(self, name: str) -> str:
        """All text inside elements with this tag or class, white space run together."""
        return " ".join("".join(data for names, data in self.texts if name in names).split())


def metric(difference: Difference, *, primary: bool = False) -> dict[str, Any]:
    d = difference
    return {
        "before": {"mean": d.before_mean, "median": d.before_median, "std": d.before_std},
        "after": {"mean": d.after_mean, "median": d.after_median, "std": d.after_std},
        "difference": {"mean": d.difference, "ci_low": d.ci_low, "ci_high": d.ci_high},
        "n": d.n,
        "confidence": d.confidence,
        "higher_is_better": d.higher_is_better,
        "primary": primary,
        "verdict": d.verdict,
        "sentence": d.sentence(),
    }


def a_report(shift: float = 2.0, *, higher_is_better: bool = True, n: int = 40, text: str = "word") -> Report:
    """Scores rise from about 10 by `shift`; the answer to prompt i is text i, and prompt 7 lost most of all."""
    before = np.sin(np.arange(n)) + 10
    after = before + shift + 0.1 * np.cos(np.arange(n))
    after[7] = 0
    primary = compare_paired("score", before, after, higher_is_better=higher_is_better)
    other = compare_paired("reward/polite", before, before + 1e-3 * np.cos(np.arange(n)))
    record = {
        "metrics": {"reward/polite": metric(other), "score": metric(primary, primary=True)},
        "facts": {
            "kl": {
                "before": {"mean": 0.0, "median": 0.0, "std": 0.0},
                "after": {"mean": 4.25, "median": 4.5, "std": 0.75},
                "difference": {"mean": 4.25, "ci_low": 4.0, "ci_high": 4.5},
                "n": n,
            },
            "finished": {
                "before": {"mean": 0.5, "median": 0.5, "std": 0.5},
                "after": {"mean": NAN, "median": NAN, "std": NAN},
                "difference": {"mean": NAN, "ci_low": NAN, "ci_high": NAN},
                "n": n,
            },
        },
        "about": {"Model": f"tiny {text}"},
        "notes": [f"The annotator is simulated: {text}."],
    }
    pairs = [
        AnswerPair(f"prompt {i} {text}", f"old {i} {text}", f"new {i} {text}", *scores)
        for i, scores in enumerate(zip(before.tolist(), after.tolist(), strict=True))
    ]
    values = {"score": (before.tolist(), after.tolist()), "kl": ([0.0] * n, [NAN, *[4.25] * (n - 1)])}
    return Report(f"Title {text}", record, values, pairs)


def written(folder: Path, report: Report) -> tuple[dict[str, Any], str, Page]:
    stored, page = write_report(folder, report)
    text = page.read_text(encoding="utf-8")
    return json.loads(stored.read_text(encoding="utf-8"), parse_constant=pytest.fail), text, Page(text)


@pytest.mark.parametrize(
    ("shift", "higher_is_better", "headline"),
    [
        (2.0, True, "Better: the mean score rose from 10.03 to 11.71"),
        (2.0, False, "Worse: the mean score rose from 10.03 to 11.71"),
        (-2.0, False, "Better: the mean score fell from 10.03 to 7.81"),
        (0.1, True, "Not distinguishable: the mean score went from 10.03 to 9.86"),
    ],
)
def test_headline_is_the_primary_metrics_verdict(
    tmp_path: Path, shift: float, higher_is_better: bool, headline: str
) -> None:
    _, _, page = written(tmp_path, a_report(shift, higher_is_better=higher_is_better))
    assert page.within("h1") == headline
    assert page.within("title").startswith(f"Title word: {headline.split(':')[0].lower()}")


def test_numbers_come_with_interval_n_and_verdict(tmp_path: Path) -> None:
    report = a_report(n=1200)
    told = report.record["metrics"]["score"]["sentence"]
    mean, low, high = re.findall(r"[+-]\d+\.\d+", told)
    _, _, page = written(tmp_path, report)
    assert page.within("key-numbers").split("Difference")[1] == (
        f"{mean} 95 % interval {low} to {high} Held-out prompts1,200 each answered before and after"
    )
    score, polite = page.within("numbers").index("Score"), page.within("numbers").index("Reward: polite")
    assert score < polite  # the primary metric comes first
    assert "✓ better" in page.within("numbers")
    assert "≈ not distinguishable" in page.within("numbers")
    assert "0.00 median 0.00, SD 0.00 4.25 median 4.50, SD 0.75 +4.25 +4.00 to +4.50 1,200" in page.within("numbers")
    assert "share 0.50 median 0.50, SD 0.50 – median –, SD – – – to – 1,200" in page.within("numbers")


@pytest.mark.parametrize(
    ("value", "digits", "sign", "told"),
    [
        (-1234.56, 1, "", "−1,234.6"),
        (-0.001, 2, "+", "+0.00"),
        (0.024, None, "", "0.0240"),
        (123456.0, None, "", "123,456"),
        (1e-9, None, "", "0.000000"),
        (0.0, None, "+", "+0"),
        (math.inf, 2, "", "–"),
    ],
)
def test_numbers_are_printed_for_people(value: float, digits: int | None, sign: str, told: str) -> None:
    assert _number(value, digits, sign) == told


def test_a_sentences_weakness_becomes_a_caution(tmp_path: Path) -> None:
    assert "Caution" not in written(tmp_path, a_report())[2].within("note")
    few = written(tmp_path, a_report(n=12))[2].within("note")
    assert few.startswith("Caution n = 12 is below 30, so the interval is rough.")
    own = a_report()
    own.record["metrics"]["score"]["sentence"] = "Worded by somebody else."
    assert "Caution Worded by somebody else." in written(tmp_path, own)[2].within("note")


def test_every_note_has_a_banner(tmp_path: Path) -> None:
    report = a_report()
    report.record["notes"].append("Only one seed.")
    _, _, page = written(tmp_path, report)
    assert page.within("note") == "Note The annotator is simulated: word.Note Only one seed."


def test_counts_of_the_change_respect_the_direction(tmp_path: Path) -> None:
    assert "39 better, 1 worse, 0 the same" in written(tmp_path, a_report())[2].within("figcaption")
    lower = a_report(higher_is_better=False)
    assert "1 better, 39 worse, 0 the same" in written(tmp_path, lower)[2].within("figcaption")


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_answers_are_picked_by_rule(tmp_path: Path, higher_is_better: bool) -> None:
    scores = [(5.0, NAN), (5.0, 9.0), (0.0, 7.0), (8.0, 2.0), (7.0, 4.0), (NAN, 3.0), *[(5.0, 5.0)] * 20]
    sign = 1 if higher_is_better else -1
    pairs = [AnswerPair("", "", f"a{i}", sign * old, sign * new) for i, (old, new) in enumerate(scores)]
    _, text, page = written(tmp_path, replace(a_report(higher_is_better=higher_is_better), pairs=pairs))
    shown = {section.split(" <small>")[0]: re.findall(r">a(\d+)</div>", section) for section in text.split("<h3>")[1:]}
    assert list(shown) == ["Drawn at random", "Best after", "Worst after", "Most gained", "Most lost"]
    assert shown["Drawn at random"] == sorted(set(shown["Drawn at random"]), key=int)
    assert len(shown["Drawn at random"]) == 6
    assert shown["Best after"] == ["1", "2", "6", "7", "8", "9"]
    assert shown["Worst after"] == ["3", "5", "4", "6", "7", "8"]  # equal scores in the order of the prompts
    assert shown["Most gained"] == ["2", "1"]
    assert shown["Most lost"] == ["3", "4"]
    assert ("+7.00" if higher_is_better else "−7.00") in page.within("sample")


def test_white_space_and_empty_answers_are_kept(tmp_path: Path) -> None:
    pairs = [AnswerPair("\n a\tb\r\n\n  c ", "", "same\rline", 1.0, 2.0)]
    _, text, page = written(tmp_path, replace(a_report(), pairs=pairs))
    assert '<div class="text" dir="auto">\n a\tb\n\n  c </div>' in text
    assert re.search(r"\.text { white-space: pre-wrap;", page.within("style"))
    assert '<div class="text" dir="auto"><i>nothing</i></div>' in text
    assert "same␍line" in text


def test_a_humans_answer_stands_below_both_sides(tmp_path: Path) -> None:
    pairs = [AnswerPair("p", "old", "new", 1.0, 2.0, "a < b"), AnswerPair("p", "old", "new", 1.0, 2.0)]
    _, _, page = written(tmp_path, replace(a_report(), pairs=pairs))
    assert page.within("human") == "A human’s answera < b" * 4  # in each group but Most lost, which is empty
    assert "ROUGE" not in page.within("reading")


def test_texts_of_any_kind_stay_texts(tmp_path: Path) -> None:
    record, text, page = written(tmp_path, a_report(text=HOSTILE))
    plain = written(tmp_path, a_report())[2]
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in plain.elements]  # no element more or less
    assert "script" not in {tag for tag, _ in page.elements}
    shown = "</svg><script>alert('1')</script> \"a\" & &amp; {{ 7 * 7 }}␀␛\ufffd\ufffd שלום\u202e"
    for where in ("overline", "note", "prompt", "side", "facts"):
        assert shown in page.within(where), where
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", text)
    assert record["notes"] == [f"The annotator is simulated: {HOSTILE}."]


def test_nothing_comes_from_outside_and_nothing_runs(tmp_path: Path) -> None:
    history = [{"step": i, "objective/kl": i / 10} for i in range(50)]
    _, text, page = written(tmp_path, replace(a_report(text="long " * 200), history=history))
    assert not {"script", "link", "img", "iframe", "object", "image"} & {tag for tag, _ in page.elements}
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("href", "src", "xlink:href", "action", "srcset"):
                assert (value or "").startswith("#"), (tag, name, value)
    assert set(re.findall(r"https?://[^\"' )]+", text)) == {
        "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink",
    }  # fmt: skip
    assert "@import" not in text
    assert set(re.findall(r"url\(([^)]{2})", text)) <= {"#v", "#c", "#p"}
    assert "default-src 'none'" in text


def test_ids_are_unique_and_links_and_labels_find_them(tmp_path: Path) -> None:
    report = a_report()
    history = [{"step": i, "objective/kl": i / 10, "ppo/mean_scores": i} for i in range(50)]
    _, _, page = written(tmp_path, replace(report, values={**report.values, "odd": ([NAN], [1.5])}, history=history))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.elements:
        wanted = (attributes.get("aria-labelledby") or "").split()
        if tag in ("a", "use"):
            wanted.append((attributes.get("href") or attributes.get("xlink:href") or "").removeprefix("#"))
        assert set(wanted) <= set(ids), (tag, wanted)
    figures = [attributes for tag, attributes in page.elements if attributes.get("class") == "figure" and tag == "svg"]
    assert len(figures) == 6
    assert all(figure["role"] == "img" and figure["aria-labelledby"] for figure in figures)
    assert sum(tag == "caption" for tag, _ in page.elements) == 2
    assert all(attributes.get("scope") for tag, attributes in page.elements if tag == "th")


def test_curves_are_drawn_for_what_was_logged(tmp_path: Path) -> None:
    rows: list[Mapping[str, Any]] = [
        {"step": 0, "ppo/mean_scores": 1.0, "objective/entropy": None, "tokens/responses_len_mean": "many"},
        {"step": 0, "event": "skipped_update"},
        {"step": 1, "ppo/mean_scores": 2.5, "unknown": 1.0},
    ]
    _, text, page = written(tmp_path, replace(a_report(), history=rows))
    assert "Reward" in page.within("figcaption")
    assert "2 values from 1 to 2.5" in text
    assert text.count('id="curve-') == 3  # title, description and clip path of one curve
    assert "Training" not in written(tmp_path, a_report())[2].within("h2")


def test_page_stays_below_two_megabytes_and_says_what_it_cut(tmp_path: Path) -> None:
    size = LONGEST_TEXT + 1234
    pairs = [AnswerPair('"' * size, "'" * size, "\x00" * size, i, 40 - 2 * i, "&" * size) for i in range(40)]
    report = a_report()
    values = {f"reward/{i}": report.values["score"] for i in range(12)}
    history = [{"step": i, "objective/kl": math.sin(i), "ppo/mean_scores": i} for i in range(20_000)]
    _, text, page = written(tmp_path, replace(report, pairs=pairs, values=values, history=history))
    assert len(text.encode()) < 2_000_000
    assert "… 1,234 more characters" in page.within("cut")
    assert page.within("prompt").count('"') == 30 * LONGEST_TEXT


def test_little_is_enough(tmp_path: Path) -> None:
    metrics = a_report().record["metrics"]
    record, _, page = written(tmp_path, Report("t", {"metrics": metrics}, {}, []))
    assert page.within("h1").startswith("Better")
    assert page.within("h2") == "NumbersHow to read this"
    assert record == {"metrics": json.loads(json.dumps(metrics))}


def test_record_is_strict_json_for_people_too(tmp_path: Path) -> None:
    report = a_report()
    record, _, _ = written(tmp_path, report)
    assert record["facts"]["finished"]["before"]["mean"] == 0.5
    assert record["facts"]["finished"]["after"] == {"mean": None, "median": None, "std": None}
    assert record["metrics"] == report.record["metrics"]
    assert "→" in (tmp_path / "report.json").read_text(encoding="utf-8")


def test_equal_reports_are_equal_to_the_byte(tmp_path: Path) -> None:
    first = [path.read_bytes() for path in write_report(tmp_path, a_report())]
    assert [path.read_bytes() for path in write_report(tmp_path, a_report())] == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json"]


def test_a_report_that_cannot_be_made_leaves_the_old_one(tmp_path: Path) -> None:
    write_report(tmp_path, a_report())
    old = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    bad = a_report(3.0)
    with pytest.raises(DataError, match=r"score: 1 values before and 2 after: each prompt needs one"):
        write_report(tmp_path, replace(bad, values={"score": ([1.0], [1.0, 2.0])}))
    bad.record["metrics"]["reward/polite"]["primary"] = True
    with pytest.raises(DataError, match=r"2 of 2 metrics are primary \['reward/polite', 'score'\]"):
        write_report(tmp_path, bad)
    for name in bad.record["metrics"]:
        bad.record["metrics"][name]["primary"] = False
    with pytest.raises(DataError, match="0 of 2 metrics are primary"):
        write_report(tmp_path, bad)
    bad = a_report(3.0)
    bad.record["metrics"]["score"]["verdict"] = "great"
    with pytest.raises(DataError, match="score: verdict 'great': a reader would not know"):
        write_report(tmp_path, bad)
    bad = a_report(3.0)
    with pytest.raises(TypeError, match="PosixPath is not JSON serializable"):
        write_report(tmp_path, replace(bad, record={**bad.record, "about": {"model": Path("m")}}))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == old


def test_a_disk_that_fails_leaves_the_old_report_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = [path.read_bytes() for path in write_report(tmp_path, a_report())]

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match="is full"):
        write_report(tmp_path, a_report(3.0))
    assert [(tmp_path / name).read_bytes() for name in ("report.json", "report.html")] == old


def test_n_says_what_it_counts_where_that_is_not_prompts(tmp_path: Path) -> None:
    report = a_report()
    blocks = {"mean": 0.5, "median": 0.5, "std": 0.1}
    moved = {"mean": 0.0, "ci_low": -0.1, "ci_high": 0.1}
    report.record["facts"]["distinct-2"] = {"before": blocks, "after": blocks, "difference": moved, "n": 25} | {
        "unit": "blocks"
    }
    _, _, page = written(tmp_path, report)
    assert "25 blocks" in page.within("numbers")
    assert "40 blocks" not in page.within("numbers")
