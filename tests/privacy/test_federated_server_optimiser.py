"""The server rules against their formulas, and against torch's Adam where the two agree."""

import numpy as np
import pytest

from privacy.errors import ParameterError
from privacy.federated.server_optimiser import ServerOptimiser, mean_delta

DELTAS = np.random.default_rng(11).normal(0, 0.3, (9, 5))


def run(optimiser: ServerOptimiser, deltas: np.ndarray = DELTAS) -> np.ndarray:
    state = optimiser.start(np.linspace(-1, 1, deltas.shape[1]))
    for delta in deltas:
        state = optimiser.step(state, delta)
    assert state.rounds == len(deltas)
    return state.weights


def by_hand(rule: str, eta: float, beta1: float, beta2: float, tau: float) -> np.ndarray:
    """Algorithm 2, one coordinate at a time."""
    result = []
    for column, x in enumerate(np.linspace(-1, 1, 5)):
        m, v = 0.0, tau**2
        for d in DELTAS[:, column]:
            m = beta1 * m + (1 - beta1) * d
            if rule == "fedadam":
                v = beta2 * v + (1 - beta2) * d * d
            elif v > d * d:
                v = v - (1 - beta2) * d * d
            else:
                v = v + (1 - beta2) * d * d
            x += eta * m / (v**0.5 + tau)
        result.append(x)
    return np.array(result)


@pytest.mark.parametrize("rule", ["fedadam", "fedyogi"])
@pytest.mark.parametrize(("eta", "beta1", "beta2", "tau"), [(0.1, 0.9, 0.99, 1e-3), (1.0, 0.0, 0.5, 0.3)])
def test_adaptive_rules_are_the_papers(rule: str, eta: float, beta1: float, beta2: float, tau: float) -> None:
    found = run(ServerOptimiser(rule, eta, beta1, beta2, tau))
    np.testing.assert_allclose(found, by_hand(rule, eta, beta1, beta2, tau), rtol=1e-12)


def test_adam_and_yogi_differ_once_the_second_moment_must_fall() -> None:
    falling = np.concatenate([np.full((1, 5), 2.0), np.full((12, 5), 1e-3)])
    adam, yogi = (run(ServerOptimiser(rule, 0.1, 0.0, 0.5), falling) for rule in ("fedadam", "fedyogi"))
    assert (adam > yogi + 1e-3).all()  # Yogi forgets a large moment slowly, so its steps stay small


def test_fedavg_at_rate_one_is_the_weighted_mean_of_the_sites_models() -> None:
    start = np.array([1.0, 2.0])
    models = {"a": np.array([2.0, 2.0]), "b": np.array([5.0, -2.0])}
    counts = {"a": 30, "b": 10, "absent": 1000}
    optimiser = ServerOptimiser("fedavg")
    mean = mean_delta({name: model - start for name, model in models.items()}, counts)
    after = optimiser.step(optimiser.start(start), mean)
    np.testing.assert_allclose(after.weights, (30 * models["a"] + 10 * models["b"]) / 40)


def test_fedavg_with_momentum_is_torchs_sgd() -> None:
    torch = pytest.importorskip("torch")
    parameter = torch.nn.Parameter(torch.linspace(-1, 1, 5, dtype=torch.float64))
    sgd = torch.optim.SGD([parameter], lr=0.4, momentum=0.9)
    for delta in DELTAS:
        parameter.grad = torch.from_numpy(-delta)
        sgd.step()
    found = run(ServerOptimiser("fedavg", 0.4, beta1=0.9))
    np.testing.assert_allclose(found, parameter.detach().numpy(), rtol=1e-12)


def test_the_order_in_which_sites_answer_changes_nothing() -> None:
    deltas = {name: DELTAS[index] for index, name in enumerate("dbca")}
    counts = {"a": 7, "b": 11, "c": 13, "d": 17}
    other = {name: deltas[name] for name in "cabd"}
    assert mean_delta(deltas, counts).tobytes() == mean_delta(other, counts).tobytes()


def test_bad_deltas_and_constants_are_refused() -> None:
    counts = {"a": 3, "b": 4}
    good = np.ones(2)
    for deltas, says in (
        ({}, "No site"),
        ({"a": good, "b": np.array([1.0, np.nan])}, "delta of b"),
        ({"a": good, "b": np.ones(3)}, "delta of b"),
        ({"a": good, "c": good}, "patients for c"),
    ):
        with pytest.raises(ParameterError, match=says):
            mean_delta(deltas, counts)
    optimiser = ServerOptimiser("fedavg")
    for delta in (np.ones(3), np.array([np.inf, 0.0])):
        with pytest.raises(ParameterError, match="mean delta"):
            optimiser.step(optimiser.start(good), delta)
    with pytest.raises(ParameterError, match="first model"):
        optimiser.start(np.array([np.nan]))
    for bad in ({"rule": "adam"}, {"learning_rate": 0.0}, {"beta1": 1.0}, {"beta2": -0.1}, {"tau": 0.0}):
        with pytest.raises(ParameterError):
            ServerOptimiser(**{"rule": "fedadam", **bad})
