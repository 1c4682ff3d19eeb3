"""Captions of the figures: what is drawn, over what, and how to read it."""

from __future__ import annotations

from analysis import style

HOURS = (
    "Mean metric against the time spent up to and with each round, a mean over seeds; bars: ± one standard "
    "deviation. Time is that of the committed rounds: scoring, querying and training, on the device each ran on."
)
PENALTY = (
    "Pairwise penalty matrix (Ash et al. 2020): how often the row's method beats the column's, in a paired "
    "two-sided t-test over seeds at p < 0.05, as a share of rounds and summed over settings. Last row: how often a "
    "method is beaten."
)
BALANCE = (
    "Left: entropy of the classes of each query, 1 for an even one (mean over seeds). Right: how often a "
    "class was queried over all rounds, relative to its share (mean over seeds)."
)
OVERLAP = (
    "Percentage of a query that two methods with the same seed both chose (mean over seeds). The first query is "
    "drawn from the same unlabelled images by all of them."
)
NEEDS = {
    "class balance of queries": "no round recorded the classes of its query",
    "overlap of queries": "it needs two methods with two rounds and the same initial labels",
    "map of features": "no round kept its features (features.npz)",
    "signals": "no round recorded the calibration of its networks (it was run by an older version)",
    "floor": "simple classifiers to compare with; no round recorded what they reach (floor)",
    "losses": "no round has a history.json",
}


def gain(baseline: str) -> str:
    """Caption of the gain over a baseline."""
    return (
        f"Difference from {style.method_label(baseline)} with the same seed: mean and Student's 95% interval; faint "
        "points: single seeds. An interval that leaves out zero is significant at that round alone, uncorrected."
    )


def maps(title: str) -> str:
    """Caption of the maps of features."""
    return (
        f"{title}: features of a round on their first two principal axes, with the images it was trained on and "
        "those it queried (compare the paper's Figure 1). Distances in two dimensions are only a part of those in all."
    )


def signals(title: str) -> str:
    """Caption of a panel's signals."""
    return (
        f"{title}: what each round recorded, mean over seeds. Calibration error: expected, 15 bins, on the "
        "test set. C: the classifier of Algorithm 1 on the test set. D: before the round's query; an AUC of 0.5 means "
        "that it cannot tell labelled from unlabelled. Rank correlation: 1 where the images of highest entropy are "
        "those that D is surest are unlabelled."
    )


def losses(title: str) -> str:
    """Caption of a panel's losses."""
    return (
        f"{title}: losses over the steps of each round (below: its number), during training, mean over seeds. "
        "Algorithm 1's entropy is H of the unlabelled: F goes down it, C's prototypes go up it. D's loss is the sum of "
        "both sides, 2 log 2 = 1.39 where it guesses."
    )
