"""Classifiers on features: equal to scikit-learn's, and chosen without the test set."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import LinearSVC

from models.errors import UserError
from train.probing import classifiers
from train.probing.features import Features


def data(count=300, size=8, classes=4, noise=1.0, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count).astype(np.int32)
    centers = np.random.default_rng(9).normal(size=(classes, size))
    return Features((centers[labels] + noise * rng.normal(size=(count, size))).astype(np.float32), labels)


@pytest.mark.parametrize("strength", [1e-3, 0.1])
def test_logistic_regression_equals_scikit_learn(strength):
    train, test = data(), data(seed=1)
    theirs = LogisticRegression(C=1 / (strength * len(train.x)), max_iter=5000, tol=1e-8).fit(train.x, train.labels)
    ours = classifiers.logistic(train.x, train.labels, 4, strength)(test.x)
    expected = theirs.decision_function(test.x)
    np.testing.assert_allclose(
        ours - ours.mean(1, keepdims=True), expected - expected.mean(1, keepdims=True), atol=2e-2
    )


@pytest.mark.parametrize("strength", [1e-2, 0.1])
def test_the_svm_equals_scikit_learn(strength):
    train, test = data(), data(seed=1)
    # LinearSVC treats the bias as one more weight: scaled so large that it is practically free
    theirs = LinearSVC(C=1 / (strength * len(train.x)), intercept_scaling=100, dual=False, tol=1e-8, max_iter=20000)
    expected = theirs.fit(train.x, train.labels).decision_function(test.x)
    np.testing.assert_allclose(classifiers.svm(train.x, train.labels, 4, strength)(test.x), expected, atol=2e-2)


@pytest.mark.parametrize("k", [1, 5])
def test_neighbors_equal_scikit_learn(k):
    train, test = data(), data(seed=1)
    theirs = KNeighborsClassifier(k, metric="cosine", weights=lambda distance: np.exp(-distance / 0.07))
    expected = theirs.fit(train.x, train.labels).predict_proba(test.x)
    ours = classifiers.knn(train.x, train.labels, 4, k)(test.x)
    np.testing.assert_allclose(ours / ours.sum(1, keepdims=True), expected, atol=1e-4)


def test_several_labels_are_one_regression_per_class_on_counted_labels():
    train = data(classes=3, noise=2.0)
    labels = np.eye(3, dtype=np.int32)[train.labels]
    labels[:40, 1] = -1
    score = classifiers.logistic(train.x, labels, 3, 0.01)(train.x)
    for label in range(3):
        counted = labels[:, label] >= 0
        # our mean covers all images, whatever their number
        theirs = LogisticRegression(C=1 / (0.01 * len(labels)), max_iter=5000, tol=1e-8)
        theirs.fit(train.x[counted], labels[counted, label])
        np.testing.assert_allclose(score[:, label], theirs.decision_function(train.x), atol=2e-2)


@pytest.mark.parametrize("kind", classifiers.CLASSIFIERS)
def test_the_hyperparameter_is_chosen_without_the_test_set(kind):
    train, test = data(noise=2.0), data(seed=1, noise=2.0)
    result = classifiers.evaluate(kind, train, test, 4)
    assert result["validation"][str(result["chosen"])] == max(result["validation"].values())
    wrong = Features(test.x, (test.labels + 1) % 4)
    other = classifiers.evaluate(kind, train, wrong, 4)
    assert other["chosen"] == result["chosen"] and other["validation"] == result["validation"]
    assert result["accuracy"] > 0.5 > other["accuracy"]
    assert abs(result["mean_class_accuracy"] - result["accuracy"]) < 0.1


@pytest.mark.parametrize("kind", classifiers.CLASSIFIERS)
def test_several_labels_are_ranked(kind):
    train, test = data(classes=3), data(classes=3, seed=1)
    many = [Features(part.x, np.eye(3, dtype=np.int32)[part.labels]) for part in (train, test)]
    many[1].labels[:20, 0] = -1
    result = classifiers.evaluate(kind, *many, 3)
    assert 0.6 < result["mean_average_precision"] <= 1 and 0.6 < result["mean_average_precision_11"] <= 1


def test_one_example_per_class_leaves_no_validation_set():
    train = Features(np.eye(4, dtype=np.float32), np.arange(4, dtype=np.int32))
    result = classifiers.evaluate("logistic", train, train, 4)
    assert result["validation"] == {} and result["accuracy"] == 1
    assert classifiers.evaluate("knn", train, train, 4)["accuracy"] == 1


def test_mistakes_are_one_line():
    train = data()
    with pytest.raises(UserError, match="unknown classifier 'svn'; did you mean 'svm'"):
        classifiers.evaluate("svn", train, train, 4)
    with pytest.raises(UserError, match="label 3 is out of range: classes are 0 to 2"):
        classifiers.evaluate("svm", train, train, 3)
    with pytest.raises(UserError, match="training features have 8 dimensions, but test features 7"):
        classifiers.evaluate("svm", train, Features(train.x[:, 1:], train.labels), 4)
    with pytest.raises(UserError, match="unknown classifier 'tree'"):
        classifiers.names("svm,tree")
    assert classifiers.names("svm, knn") == ["svm", "knn"]
