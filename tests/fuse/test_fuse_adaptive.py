"""Adaptive fusion and logistic regression: the objective and its solver."""

import dataclasses

import numpy as np
import pytest
import scipy.optimize
from sklearn.linear_model import LogisticRegression

from twostream_jax import fuse
from twostream_jax.fuse import adaptive, fitting, proximal
from twostream_jax.scores import Scores, softmax


def streams(multi_label, seed=0, videos=60, n=4):
  rng = np.random.default_rng(seed)
  if multi_label:
    labels = rng.random((videos, n)) < 0.4
    truth = labels
  else:
    labels = (np.arange(videos) % n).astype(np.int32)
    truth = np.eye(n)[labels]
  ids = tuple(f"{i:03d}" for i in range(videos))
  return {
    name: Scores(
      ids,
      labels,
      (2 * truth + rng.normal(size=(videos, n))).astype(np.float32),
      "1 x 1",
    )
    for name in ("s", "t")
  }


def create_problem(multi_label, lambda1, lambda2):
  data = fitting.fitting_set(streams(multi_label), "validation")
  seen = np.ones(len(data.labels), bool)
  return adaptive.create_problem(data, seen, (lambda1, lambda2), True)


def solve(problem):
  return proximal.minimise(
    problem.objective,
    problem.gradient,
    problem.lambda2,
    problem.prior,
    problem.step(),
    tolerance=1e-8,
  )


def test_soft_threshold_known():
  values = np.array([-3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0])
  np.testing.assert_array_equal(
    proximal.soft_threshold(values, 1.0), [-2, 0, 0, 0, 0, 0, 2]
  )
  np.testing.assert_array_equal(proximal.soft_threshold(values, 0.0), values)


def test_soft_threshold_is_the_proximal_operator_of_the_l1_norm():
  grid = np.linspace(-4, 4, 80_001)
  for value in (-2.3, -0.4, 0.0, 0.7, 3.1):
    cost = 0.5 * (grid - value) ** 2 + 0.6 * np.abs(grid)
    ours = proximal.soft_threshold(np.array(value), 0.6)
    assert ours == pytest.approx(grid[cost.argmin()], abs=1e-4)


def test_one_proximal_step_on_a_quadratic_is_its_closed_form():
  """min 1/2 |w - a|^2 + p |w|_1 is solved by soft(a, p)."""
  a = np.array([3.0, -0.2, 0.9, -4.0])
  penalty = np.array([1.0, 1.0, 0.5, 0.0])
  w, history = proximal.minimise(
    lambda w: float(0.5 * ((w - a) ** 2).sum() + (penalty * abs(w)).sum()),
    lambda w: w - a,
    penalty,
    np.zeros(4),
    1.0,
  )
  np.testing.assert_allclose(w, [2.0, 0.0, 0.4, -4.0])
  assert len(history) <= 3


def test_no_convergence_is_said():
  with pytest.raises(RuntimeError, match="in 5 steps; regularise more"):
    proximal.minimise(
      lambda w: float(np.exp(-w).sum()),
      lambda w: -np.exp(-w),
      0.0,
      np.zeros(1),
      1.0,
      max_steps=5,
    )


@pytest.mark.parametrize("multi_label", [False, True])
def test_gradient_is_that_of_the_objective(multi_label):
  problem = create_problem(multi_label, 0.03, 0.0)
  weights = np.random.default_rng(1).normal(size=problem.prior.shape)
  gradient = problem.gradient(weights)
  for index in [(0, 0), (3, 2), (7, 1), (-1, 3)]:
    shift = np.zeros_like(weights)
    shift[index] = 1e-5
    difference = problem.objective(weights + shift) - problem.objective(
      weights - shift
    )
    assert gradient[index] == pytest.approx(difference / 2e-5, rel=1e-5)


@pytest.mark.parametrize("multi_label", [False, True])
def test_step_is_safe(multi_label):
  """The gradient changes by at most 1 / step times the change of weights."""
  problem = create_problem(multi_label, 0.01, 0.0)
  rng = np.random.default_rng(2)
  for scale in (0.01, 1, 10):
    one, two = scale * rng.normal(size=(2, *problem.prior.shape))
    change = np.linalg.norm(problem.gradient(one) - problem.gradient(two))
    assert change <= np.linalg.norm(one - two) / problem.step()


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("lambda2", [0.0, 1e-3])
def test_objective_never_rises(multi_label, lambda2):
  problem = create_problem(multi_label, 1e-4, lambda2)
  _, history = solve(problem)
  assert len(history) > 20
  assert (np.diff(history) <= 0).all()
  assert history[0] == problem.objective(problem.prior)


@pytest.mark.parametrize("multi_label", [False, True])
def test_solution_is_that_of_lbfgs_without_the_l1_norm(multi_label):
  problem = create_problem(multi_label, 1e-3, 0.0)
  shape = problem.prior.shape
  reference = scipy.optimize.minimize(
    lambda w: problem.objective(w.reshape(shape)),
    np.zeros(problem.prior.size),
    jac=lambda w: problem.gradient(w.reshape(shape)).ravel(),
    method="L-BFGS-B",
    options={"ftol": 1e-15, "gtol": 1e-9, "maxiter": 5000},
  )
  ours, history = solve(problem)
  np.testing.assert_allclose(ours.ravel(), reference.x, atol=1e-4)
  assert history[-1] <= reference.fun + 1e-10


@pytest.mark.parametrize("multi_label", [False, True])
def test_solution_meets_the_conditions_of_the_l1_norm(multi_label):
  problem = create_problem(multi_label, 1e-3, 5e-3)
  weights, _ = solve(problem)
  gradient = problem.gradient(weights)
  penalty = np.broadcast_to(problem.lambda2, weights.shape)
  zero = weights == 0
  assert 0.1 < zero.mean() < 0.9
  np.testing.assert_allclose(
    gradient[~zero], (-penalty * np.sign(weights))[~zero], atol=1e-6
  )
  assert (np.abs(gradient[zero]) <= penalty[zero] + 1e-6).all()


@pytest.mark.parametrize("multi_label", [False, True])
def test_a_large_lambda1_gives_the_prior(multi_label):
  problem = create_problem(multi_label, 1e6, 0.0)
  np.testing.assert_allclose(problem.minimise(), problem.prior, atol=1e-6)


@pytest.mark.parametrize("multi_label", [False, True])
def test_a_large_lambda2_gives_zero(multi_label):
  weights = create_problem(multi_label, 1e-3, 10.0).minimise()
  assert not weights[:8].any()
  # The bias is free of it.
  assert len(weights) == 8 or weights[8].all()


def test_class_relations_known():
  labels = np.array([0, 0, 0, 0, 1, 1])
  predicted = np.array([0, 0, 0, 1, 2, 1])
  relations = adaptive.class_relations(np.eye(3)[predicted], np.eye(3)[labels])
  # Column: the class; row: what is predicted for it. None is of class 2.
  np.testing.assert_allclose(
    relations, [[0.75, 0, 0], [0.25, 0.5, 0], [0, 0.5, 1]]
  )


def test_class_relations_count_a_video_for_each_of_its_classes():
  targets = np.array([[1.0, 1, 0], [0, 1, 0], [0, 0, 0]])
  relations = adaptive.class_relations(np.eye(3)[[0, 1, 2]], targets)
  np.testing.assert_allclose(relations, [[1, 0.5, 0], [0, 0.5, 0], [0, 0, 1]])


def test_the_prior_alone_repairs_a_stream_that_swaps_two_classes():
  labels = np.repeat(np.arange(3), 10).astype(np.int32)
  swapped = np.array([1, 0, 2])[labels]
  ids = tuple(f"{i:02d}" for i in range(30))
  named = {"s": Scores(ids, labels, np.eye(3, dtype=np.float32)[swapped], "")}
  fitted = fuse.fit_adaptive(named, split="validation", lambdas=[(1e6, 0.0)])
  fused = fuse.apply(fitted, named)
  assert (fused.logits.argmax(axis=1) == labels).all()


def test_logistic_regression_is_scikit_learn_s():
  named = streams(multi_label=False)
  features = np.hstack([softmax(s.logits) for s in named.values()])
  labels = named["s"].labels
  lambda1 = 1e-3
  reference = LogisticRegression(
    C=1 / (2 * len(labels) * lambda1), fit_intercept=False, tol=1e-8
  ).fit(features, labels)
  fitted = fuse.fit_logistic(named, split="validation", lambdas=[lambda1])
  np.testing.assert_allclose(fitted.weights, reference.coef_.T, atol=1e-3)
  assert not fitted.bias.any()
  assert fitted.rule == (
    "logistic regression (lambda1 0.001, lambda2 0 as given)"
  )


def test_multi_label_regression_without_evidence_gives_the_shares():
  """A large lambda leaves the bias, the log-odds of the class."""
  named = streams(multi_label=True)
  named["s"].labels[:] = False
  named["s"].labels[:15, 1] = True
  named = {
    name: dataclasses.replace(s, labels=named["s"].labels)
    for name, s in named.items()
  }
  fitted = fuse.fit_logistic(named, split="validation", lambdas=[1e6])
  share = 1 / (1 + np.exp(-fitted.bias))
  np.testing.assert_allclose(
    share, np.array([0.5, 15.5, 0.5, 0.5]) / 61, rtol=1e-3
  )
  np.testing.assert_allclose(fitted.weights, 0, atol=1e-6)


@pytest.mark.parametrize("lambdas", [[(-1.0, 0.0)], [(1.0, np.nan)]])
def test_lambdas_that_mean_nothing_are_refused(lambdas):
  with pytest.raises(ValueError, match="lambdas must be finite"):
    fuse.fit_adaptive(
      streams(multi_label=False), split="validation", lambdas=lambdas
    )


def test_cross_validation_is_named_and_repeatable():
  named = streams(multi_label=False)
  pairs = [(1.0, 0.0), (1e-2, 1e-3), (1e-3, 0.0)]
  one, two = (
    fuse.fit_adaptive(named, split="val", lambdas=pairs) for _ in range(2)
  )
  assert "by 5-fold cross-validation" in one.rule
  assert one.rule == two.rule
  np.testing.assert_array_equal(one.weights, two.weights)
