"""The keyed generator: published test vectors, and independence of everything but the key."""

from __future__ import annotations

import numpy as np
import pytest

from hydralign.generation.keyed import drawn_lengths, keyed_uniforms, philox


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [  # known answers of the Random123 distribution, philox4x32 with 10 rounds
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_words(
    counter: tuple[int, int, int, int], key: tuple[int, int], words: tuple[int, int, int, int]
) -> None:
    a, b, c, d = (np.array([word], dtype=np.uint64) for word in counter)
    assert tuple(int(word[0]) for word in philox((a, b, c, d), key)) == words


def uniforms(rows: list[int], **changes: int) -> np.ndarray:
    key = {"seed": 3, "iteration": 5, "positions": 4, **changes}
    return keyed_uniforms(rows=np.array(rows), **key)


def test_a_number_depends_on_its_own_key_alone() -> None:
    whole = uniforms([10, 11, 12, 13], positions=9)
    assert np.array_equal(uniforms([12, 10]), whole[[2, 0], :4])


@pytest.mark.parametrize("change", [{"seed": 4}, {"seed": 3 + (1 << 32)}, {"iteration": 6}, {"stream": 1}])
def test_every_part_of_the_key_changes_every_number(change: dict[str, int]) -> None:
    assert not np.isin(uniforms([1, 2], **change), uniforms([1, 2])).any()
    assert not np.isin(uniforms([1 + (1 << 32), 2 + (1 << 32)]), uniforms([1, 2])).any()


def test_numbers_are_uniform_and_unrelated_between_rows() -> None:
    drawn = uniforms(list(range(500)), positions=200)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    counts, _ = np.histogram(drawn, bins=20, range=(0, 1))
    assert np.abs(counts - 5000).max() < 350  # 5 standard deviations
    assert abs(np.corrcoef(drawn[:-1].ravel(), drawn[1:].ravel())[0, 1]) < 0.02


def test_lengths_cover_both_ends() -> None:
    lengths = drawn_lengths(4, 16, seed=0, iteration=0, rows=np.arange(2000))
    assert (lengths.min(), lengths.max()) == (4, 16)
    assert np.bincount(lengths)[4:].min() > 100
