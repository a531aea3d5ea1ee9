"""What hides contributions, and who refuses what."""

from __future__ import annotations

import numpy as np
import pytest

from federated.apps import client_app, server_app
from federated.federation import Federation
from federated.grid import run_in_process
from federated.messages import Reply, Request
from federated.node import Party, Policy
from federated.protection import Clear, Paillier, layout_of
from lab.errors import PeerError, PolicyError
from lab.glm import Task
from lab.sums import Limit, Sums
from secure_agg import paillier as engine
from secure_agg.errors import InvalidCiphertext, SecureAggError
from tests.conftest import federate, fit_glm, split
from tests.federated.test_glm import table

TASK = Task(target="y", exposure="years").model_dump_json()


def means(federation: Federation) -> Sums:
    return federation.sum("means", task=TASK, part="train")


def test_clear_and_paillier_give_the_same_sums(paillier: Paillier) -> None:
    parts = split(table("poisson"), 4)
    clear, hidden = federate(parts, means), federate(parts, means, paillier)
    for name in clear.arrays:
        np.testing.assert_allclose(hidden[name], clear[name], rtol=1e-12)


def test_clear_and_paillier_give_the_same_model(paillier: Paillier) -> None:
    parts = split(table("gamma"), 3)
    task = Task(target="y", family="gamma")
    clear = fit_glm(parts, task, ["age", "region"])
    hidden = fit_glm(parts, task, ["age", "region"], protection=paillier)
    np.testing.assert_allclose(hidden.model.beta, clear.model.beta, rtol=1e-9)


def test_two_parties_cannot_hide_from_each_other(paillier: Paillier) -> None:
    with pytest.raises(PolicyError, match="at least 3 parties"):
        federate(split(table("poisson"), 2), means, paillier)


def test_a_node_refuses_to_seal_for_two_parties(paillier: Paillier) -> None:
    party = Party("a", table("poisson"), table("poisson"))
    request = Request("q", "means", {"task": TASK, "part": "train"}, {}, "paillier", "abc", 2)
    with pytest.raises(PolicyError, match="hides nobody"):
        party.answer(request)


def contributions(paillier: Paillier, n: int = 3) -> dict[str, engine.Batch]:
    public = paillier._authority.public
    layout = layout_of({"x": ((2,), Limit(100.0, 1.0))}, n, public.bits)
    return {
        f"p{k}": engine.encrypt(public, layout, [np.array([k, -k], dtype=float)]) for k in range(n)
    }


def test_key_authority_opens_the_sum_of_three(paillier: Paillier) -> None:
    batches = contributions(paillier)
    total = engine.add(paillier._authority.public, list(batches.values()))
    (opened,) = paillier._authority.open("q1", batches, total)
    assert opened.tolist() == [3.0, -3.0]


def test_key_authority_refuses_one_party_alone(paillier: Paillier) -> None:
    batches = dict(list(contributions(paillier).items())[:1])
    with pytest.raises(PolicyError, match="at least 3 parties"):
        paillier._authority.open("q", batches, next(iter(batches.values())))


def test_key_authority_refuses_a_total_that_is_not_the_sum(paillier: Paillier) -> None:
    batches = contributions(paillier)
    with pytest.raises(PolicyError, match="not the sum"):
        paillier._authority.open("q", batches, batches["p0"])


def test_key_authority_answers_a_query_once(paillier: Paillier) -> None:
    batches = contributions(paillier)
    total = engine.add(paillier._authority.public, list(batches.values()))
    paillier._authority.open("q", batches, total)
    with pytest.raises(PolicyError, match="answered before"):
        paillier._authority.open("q", batches, total)


@pytest.mark.parametrize("value", ["zero", "n", "n squared", "short"])
def test_degenerate_ciphertexts_are_refused(paillier: Paillier, value: str) -> None:
    public = paillier._authority.public
    form = {"x": ((2,), Limit(100.0, 1.0))}
    layout = layout_of(form, 3, public.bits)
    good = engine.encrypt(public, layout, [np.zeros(2)]).to_bytes()
    size = public.bits // 4
    bad = {"zero": 0, "n": public.n, "n squared": public.n**2, "short": 1}[value]
    sealed = good[:-size] + bad.to_bytes(size, "big") if value != "short" else good[:-1]
    replies = [Reply(f"p{k}", 1, form, sealed=sealed if k == 1 else good) for k in range(3)]
    with pytest.raises(SecureAggError):
        paillier.open("q", replies)
    if value != "short":
        with pytest.raises(InvalidCiphertext):
            paillier.open("q", replies)


def test_an_answer_in_the_clear_is_refused_where_sealed_was_asked(paillier: Paillier) -> None:
    form = {"x": ((1,), Limit(100.0, 1.0))}
    replies = [Reply(f"p{k}", 1, form, clear={"x": np.ones(1)}) for k in range(3)]
    with pytest.raises(PeerError, match="in the clear where sealed was asked"):
        paillier.open("q", replies)
    sealed = [Reply("p", 1, form, sealed=b"x")]
    with pytest.raises(PeerError, match="sealed where clear was asked"):
        Clear().open("q", sealed)


def test_a_party_over_its_bound_refuses_without_its_value(paillier: Paillier) -> None:
    parts = split(table("poisson"), 3)
    parts[1] = parts[1].assign(years=1e300)
    with pytest.raises(PeerError, match=r"insurer 2: .*bound") as caught:
        federate(parts, means, paillier)
    assert "1e+300" not in str(caught.value)


def test_a_sum_over_fewer_rows_than_the_minimum_is_refused_by_rule() -> None:
    frame = table("poisson")
    parties = [
        Party("big", frame[:900], frame[:0], None, Policy(minimum_rows=100)),
        Party("small", frame[900:940], frame[:0], None, Policy(minimum_rows=100)),
    ]
    app = server_app(lambda nodes: means(Federation(nodes, Clear(), 2)))
    with pytest.raises(PolicyError, match=r"small: means: fewer rows behind the sum than .* 100"):
        run_in_process(app, client_app(parties.__getitem__), 2, 2)


def test_the_receipt_counts_what_passed_the_gate(paillier: Paillier) -> None:
    parts = split(table("poisson"), 3)

    def work(federation: Federation) -> object:
        means(federation)
        means(federation)
        return federation.receipts()

    receipts = federate(parts, work, paillier)
    for frame, lines in zip(parts, receipts.values(), strict=True):
        assert [line.statistic for line in lines] == ["means", "means"]
        assert all(line.rows == len(frame) and line.hiding == "paillier" for line in lines)
        assert all(line.key_bits == 2048 and line.bytes > 500 for line in lines)


def test_no_request_carries_a_prime_of_the_key(paillier: Paillier, authority_key) -> None:
    request = Request("q", "means", {}, {}, paillier.hiding, paillier.public_key, 3)
    sent = repr(request.to_record())
    assert paillier.public_key in sent
    for prime in (authority_key.p, authority_key.q):
        assert f"{int(prime):x}" not in sent
        assert str(int(prime)) not in sent
