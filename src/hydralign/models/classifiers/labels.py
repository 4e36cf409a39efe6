"""Which output of a classifier bears which name, and whether it can be read in the way that is asked for.

The check before a run reads config.json, `ClassifierReward` and `SequenceClassifier` a loaded config; all of them judge
here, so that none accepts what another one refuses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hydralign.errors import ModelError, did_you_mean


def label_names(id2label: Any, model: str) -> list[str]:
    """The names of a classifier's outputs, in their order. `model` is what messages call it.

    Raises ModelError unless `id2label` maps exactly the numbers from 0, or their digits, to names.
    """
    first = 'Write "id2label": {"0": the name of the first output, "1": the name of the second, ...} in its config.json'
    if not isinstance(id2label, Mapping):
        raise ModelError(
            f"{model} has id2label={id2label!r:.80} of type {type(id2label).__name__}: which output means what would "
            f"be a guess. {first}."
        )
    columns = {str(key): name for key, name in id2label.items()}
    wanted = [str(column) for column in range(len(id2label))]
    if set(columns) != set(wanted):
        counted = ", ".join(map(repr, columns))
        raise ModelError(
            f"{model} has the keys {counted:.200} in id2label, and its outputs are numbered from 0 to "
            f"{len(wanted) - 1}: a label would be read at another label's output. {first}."
        )
    unnamed = next((name for name in columns.values() if not isinstance(name, str)), None)
    if unnamed is not None or None in columns.values():
        raise ModelError(f"{model} has the label {unnamed!r} in id2label, which is no text. {first}.")
    return [columns[column] for column in wanted]


def labels_of_config(raw: Mapping[str, Any], label: str, model: str) -> list[str]:
    """`label_names` of the contents of a config.json; raises ModelError besides where that names no labels.

    `label` is the one that is to be read.
    """
    if not raw.get("id2label"):
        raise ModelError(
            f"the config.json of {model} names no labels: which output means {label!r} would be a guess. Add id2label "
            "to it."
        )
    return label_names(raw["id2label"], model)


def find_label(label: str, labels: Sequence[str]) -> int:
    """The column of `label`: its exact name, else the only name that differs in case alone. Raises ModelError."""
    exact = [column for column, name in enumerate(labels) if name == label]
    matches = exact or [column for column, name in enumerate(labels) if name.casefold() == label.casefold()]
    if len(matches) == 1:
        return matches[0]
    listed = ", ".join(map(repr, labels))
    if matches:
        raise ModelError(
            f"label {label!r} fits {len(matches)} labels of the classifier ({listed}): the reward would be a guess. "
            "Write the label exactly, and rename equal labels in config.json."
        )
    raise ModelError(
        f"the classifier has no label {label!r}: its labels are {listed}, and none is taken by position. "
        f"{did_you_mean(label, labels)}"
    )


def are_independent(activation: str | None, problem_type: str | None) -> bool:
    """Whether each label has a probability of its own: as `activation` says, else as the model does, else not."""
    return problem_type == "multi_label_classification" if activation is None else activation == "sigmoid"


def require_comparable(labels: Sequence[str], output: str, *, independent: bool) -> None:
    """Raise ModelError where `output` compares a label with others, and there is only one."""
    if len(labels) == 1 and output != "logit" and not independent:
        raise ModelError(
            f"the classifier has the single output {labels[0]!r}: {output} needs another label to compare with. "
            "Use output: logit, or activation: sigmoid if the output was trained so."
        )


PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
"""What a classifier's config.json may say that its outputs are."""


def require_probabilities(problem_type: str | None, activation: str | None, output: str) -> None:
    """Raise ModelError when `output` is made of probabilities, and the model's `problem_type` says that there are none,
    or is a word that nobody knows. An `activation` that is given says what they are.
    """
    if output == "logit" or activation is not None:
        return
    if problem_type == "regression":
        raise ModelError(
            f"the classifier's problem_type is 'regression': its outputs are no probabilities, so {output} would mean "
            "nothing. Use output: logit; or say by activation: sigmoid or softmax that it was trained on labels."
        )
    if problem_type is not None and problem_type not in PROBLEM_TYPES:
        raise ModelError(
            f"the classifier's problem_type {problem_type!r} in its config.json is not known: whether its labels "
            f"exclude each other, and so its {output}, would be a guess. {did_you_mean(problem_type, PROBLEM_TYPES)} "
            "Correct it, or set activation: sigmoid or softmax, or output: logit."
        )
