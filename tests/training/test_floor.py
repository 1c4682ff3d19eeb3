"""What simple classifiers reach on a round's labelled images, and when a round computes it."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC

from mal.chain import run_chain
from mal.data.dataset import load
from mal.process.interrupt import Interrupt
from mal.run import folder as run_folder
from mal.training.floor import is_worth_it, simple_classifiers
from tests.chains import chain_config, write_chain


def test_a_round_records_what_scikit_learn_reaches_on_its_labels(tmp_path: Path) -> None:
    config = chain_config("floor=auto", "rounds=1", "initial=60", method="random")
    folder = write_chain(tmp_path, config)
    run_chain(folder, None, Interrupt())
    committed = run_folder.read_round(folder / "round-0")
    dataset = load(config.dataset, Path(config.data), config.seed)
    x = dataset.train.images[committed.labeled].reshape(60, -1) / 255
    y = dataset.train.labels[committed.labeled]
    test_x, test_y = dataset.test.images.reshape(len(dataset.test), -1) / 255, dataset.test.labels
    models = {"1nn": KNeighborsClassifier(1), "logistic": LogisticRegression(max_iter=1000), "svm": SVC(C=10)}
    for name, model in models.items():
        expected = 100 * model.fit(x, y).score(test_x, test_y)
        assert committed.metrics["floor"][name] == pytest.approx(expected, abs=0.5), name
    assert committed.metrics["floor"]["svm"] > 60


def test_it_is_left_out_where_it_is_not_wanted_or_too_long(tmp_path: Path) -> None:
    folder = write_chain(tmp_path, chain_config("rounds=1", method="random"))
    run_chain(folder, None, Interrupt())
    assert "floor" not in run_folder.read_round(folder / "round-0").metrics
    assert is_worth_it(150, 450, 64, 0.0)
    assert is_worth_it(1000, 10_000, 784, 0.0)
    assert not is_worth_it(5000, 10_000, 3072, 60.0)
    assert is_worth_it(5000, 10_000, 3072, 3 * 3600.0)
    assert not is_worth_it(64_058, 50_000, 3 * 224**2, 1e9)


def test_one_class_has_a_nearest_neighbour_alone() -> None:
    images = load_digits().images[:20, None].astype(np.uint8)
    labels = np.zeros(20, np.int64)
    found = simple_classifiers(images, labels, images, labels, lambda: None)
    assert found == {"1nn": 100.0, "logistic": None, "svm": None}


def test_a_stop_is_looked_for_between_the_classifiers() -> None:
    images, labels = load_digits().images[:50, None].astype(np.uint8), load_digits().target[:50].astype(np.int64)

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simple_classifiers(images, labels, images, labels, stop)
