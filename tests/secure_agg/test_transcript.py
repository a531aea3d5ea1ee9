"""What a holder is shown before it opens anything: every bent transcript, and who is blamed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import pytest
from gmpy2 import mpz

from secure_agg import wire
from secure_agg.errors import (
    FaultyCoordinator,
    FaultyParty,
    InconsistentSum,
    InvalidIdentity,
    InvalidLayout,
    MalformedMessage,
    TooFewParties,
)
from secure_agg.identity import Identity, Roster
from secure_agg.keys import PublicKey
from secure_agg.packing import Field, Layout
from secure_agg.paillier import Batch, add, decrypt, encrypt
from secure_agg.transcript import (
    TERMS,
    Contribution,
    Terms,
    Transcript,
    blame_layout,
    contribute,
    examine,
    received,
)
from tests.rigs.malformed import CHANGES, malformed

IDENTITIES = {name: Identity(name, name.encode() * 8) for name in ("Alba", "Bora", "Cima", "Dora")}
STRANGER = Identity("Nobody", bytes(32))
ROSTER = Roster(tuple(identity.card for identity in IDENTITIES.values()))
ALBA, BORA, CIMA, DORA = ROSTER.names
THREE = (ALBA, BORA, CIMA)
LAYOUT = Layout((Field(20, 2.0**60, 2.0**-64),), 3, 2048)


@dataclass(frozen=True)
class Sum:
    """An honest sum of three: what each party has, and what the holder is shown."""

    public: PublicKey
    terms: Terms
    batches: dict[str, Batch]

    def given(self, terms: Terms | None = None) -> dict[str, Contribution]:
        """What every party sends under these terms."""
        terms = terms or self.terms
        return {
            name: contribute(IDENTITIES[name], terms, self.batches[name].to_bytes())
            for name in terms.parties
        }

    def shown(self, terms: Terms | None = None, **changed: Contribution) -> Transcript:
        """The transcript, with some contributions in place of the true ones."""
        terms = terms or self.terms
        return Transcript(terms, tuple({**self.given(terms), **changed}.values()))

    def refused(self, transcript: Transcript, words: str, roster=ROSTER, past_queries=()) -> None:
        """A holder refuses, blames the coordinator, and says what is wrong."""
        with pytest.raises(FaultyCoordinator, match=words) as caught:
            examine(roster, transcript, self.public, past_queries)
        assert caught.value.culprits == ("coordinator",)
        assert str(caught.value).startswith(f"coordinator: query {transcript.terms.query}")
        assert examine(ROSTER, self.shown(), self.public, ()).contributions == 3


@pytest.fixture(scope="module")
def honest(private):
    key = private.public.fingerprint
    terms = Terms("claims 2031", bytes(range(32)), ROSTER.digest, THREE, key, LAYOUT)
    generator = np.random.default_rng(1)
    arrays = {name: [generator.normal(size=20)] for name in IDENTITIES}
    batches = {name: encrypt(private.public, LAYOUT, arrays[name]) for name in IDENTITIES}
    return Sum(private.public, terms, batches)


def test_an_honest_transcript_is_the_sum_of_its_batches(private, honest):
    total = examine(ROSTER, honest.shown(), honest.public, {"another query"})
    assert total == add(private.public, [honest.batches[name] for name in THREE])
    alone = [decrypt(private, honest.batches[name])[0] for name in THREE]
    assert np.allclose(decrypt(private, total)[0], sum(alone), rtol=0, atol=1e-15)
    back = Transcript.from_bytes(honest.shown().to_bytes())
    assert examine(ROSTER, back, honest.public, ()) == total


def test_the_order_in_which_contributions_are_shown_does_not_matter(honest):
    mixed = Transcript(honest.terms, honest.shown().contributions[::-1])
    expected = examine(ROSTER, honest.shown(), honest.public, ())
    assert examine(ROSTER, mixed, honest.public, ()) == expected


def test_the_coordinator_can_not_have_a_single_party_s_ciphertext_opened(honest):
    for name in THREE:
        alone = Transcript(honest.terms, (honest.given()[name],))
        gone = next(other for other in THREE if other != name)
        honest.refused(alone, f"leaves out {gone}")
        thrice = Transcript(honest.terms, (honest.given()[name],) * 3)
        honest.refused(thrice, f"shows {name}'s contribution twice")
    honest.refused(Transcript(honest.terms, ()), "leaves out Alba")


@pytest.mark.parametrize("names", [(), (ALBA,), (ALBA, BORA)])
def test_a_sum_of_fewer_than_three_parties_has_no_terms(honest, names):
    fields = wire.split(TERMS, honest.terms.to_bytes(), 5, 8)
    fields[4] = fields[4].replace(b'"parties":3', b'"parties":%d' % max(1, len(names)))
    data = wire.join(TERMS, [*fields[:5], *(name.encode() for name in names)])
    few = Layout(LAYOUT.fields, max(1, len(names)), 2048)
    for make in (
        lambda: replace(honest.terms, parties=names, layout=few),
        lambda: Terms.from_bytes(data),
        lambda: Transcript.from_bytes(wire.join(b"SAGGTR01", [data])),
    ):
        with pytest.raises(TooFewParties, match=f"a sum of {len(names)} parties hides nobody"):
            make()


def test_the_coordinator_can_not_open_a_sum_of_two(honest):
    two = Transcript(honest.terms, honest.shown().contributions[:2])
    honest.refused(two, "leaves out Cima")


def test_the_coordinator_can_not_count_one_party_twice_to_open_a_sum_of_two(honest):
    given = honest.given()
    again = replace(given[ALBA], party=CIMA)
    honest.refused(honest.shown(Cima=again), "refused: Cima: its signature does not cover")


def test_the_coordinator_can_not_drop_a_party_that_the_terms_name(honest):
    for name in THREE:
        rest = tuple(c for c in honest.shown().contributions if c.party != name)
        honest.refused(Transcript(honest.terms, rest), f"leaves out {name}")


def test_the_coordinator_can_not_drop_a_party_from_the_terms_after_they_were_signed(honest):
    four = replace(honest.terms, parties=ROSTER.names, layout=replace(LAYOUT, parties=4))
    given = honest.given(four)
    bent = Transcript(honest.terms, tuple(given[name] for name in THREE))
    honest.refused(bent, "Alba: its signature does not cover this batch and these terms")


def test_the_coordinator_can_not_repeat_a_contribution(honest):
    for given in honest.shown().contributions:
        more = Transcript(honest.terms, (*honest.shown().contributions, given))
        honest.refused(more, f"shows {given.party}'s contribution twice")


def test_the_coordinator_can_not_show_somebody_on_no_roster(honest):
    batch = honest.batches[DORA].to_bytes()
    terms = replace(honest.terms, parties=(ALBA, BORA, "Nobody"))
    given = [contribute(IDENTITIES[name], terms, batch) for name in (ALBA, BORA)]
    bent = Transcript(terms, (*given, contribute(STRANGER, terms, batch)))
    honest.refused(bent, "counts Nobody, who is not on the roster")
    extra = replace(honest.given()[ALBA], party="Nobody")
    more = Transcript(honest.terms, (*honest.shown().contributions, extra))
    honest.refused(more, "shows a contribution from somebody who is not a party to it")


def test_the_coordinator_can_not_show_a_party_that_the_terms_do_not_name(honest):
    dora = replace(honest.given()[ALBA], party=DORA)
    more = Transcript(honest.terms, (*honest.shown().contributions, dora))
    honest.refused(more, "shows a contribution from somebody who is not a party to it")
    swapped = Transcript(honest.terms, (*honest.shown().contributions[:2], dora))
    honest.refused(swapped, "leaves out Cima")


def test_the_coordinator_can_not_replay_an_answered_query(honest):
    honest.refused(
        honest.shown(), "was answered before and is replayed", past_queries={"claims 2031"}
    )
    other = replace(honest.terms, question=bytes(32))
    honest.refused(honest.shown(other), "was answered before", past_queries={"x", "claims 2031"})


def test_the_coordinator_can_not_replay_contributions_under_a_new_query(honest):
    new = replace(honest.terms, query="claims 2032")
    bent = Transcript(new, honest.shown().contributions)
    honest.refused(bent, "Alba: its signature does not cover this batch and these terms")
    one_old = honest.shown(new, Bora=honest.given()[BORA])
    honest.refused(one_old, "Bora: its signature does not cover", past_queries={"claims 2031"})


def test_the_coordinator_can_not_swap_the_ciphertexts_of_two_parties(honest):
    given = honest.given()
    bent = honest.shown(
        Alba=replace(given[ALBA], batch=given[BORA].batch),
        Bora=replace(given[BORA], batch=given[ALBA].batch),
    )
    honest.refused(bent, "Alba: its signature does not cover")
    renamed = honest.shown(
        Alba=replace(given[BORA], party=ALBA), Bora=replace(given[ALBA], party=BORA)
    )
    honest.refused(renamed, "Alba: its signature does not cover")


def test_the_coordinator_can_not_alter_a_byte_of_a_batch(honest):
    given = honest.given()[BORA]
    for at in [*range(64), 64, 600, len(given.batch) - 1]:
        bad = bytearray(given.batch)
        bad[at] ^= 1
        honest.refused(honest.shown(Bora=replace(given, batch=bytes(bad))), "Bora: its signature")


def test_the_coordinator_can_not_put_in_another_signature(honest):
    given = honest.given()
    forged = contribute(STRANGER, replace(honest.terms, parties=(*THREE[:2], "Nobody")), b"")
    for signature in (given[ALBA].signature, forged.signature, bytes(64), b""):
        bent = honest.shown(Bora=replace(given[BORA], signature=signature))
        honest.refused(bent, "Bora: its signature does not cover")


def test_the_coordinator_can_not_use_a_signature_made_for_another_purpose(honest):
    batch = hashlib.sha256(honest.batches[BORA].to_bytes()).digest()
    statement = wire.join(b"SAGGCO01", [honest.terms.digest, b"Bora", batch])
    true = honest.given()[BORA]
    assert IDENTITIES[BORA].sign(b"contribution", statement) == true.signature
    other = replace(true, signature=IDENTITIES[BORA].sign(b"another purpose", statement))
    honest.refused(honest.shown(Bora=other), "Bora: its signature does not cover")


def test_the_coordinator_can_not_bring_another_roster(honest):
    usurper = Identity(CIMA, bytes(32))
    roster = Roster((*ROSTER.cards[:2], usurper.card, ROSTER.cards[3]))
    terms = replace(honest.terms, roster=roster.digest)
    own = contribute(usurper, terms, honest.batches[CIMA].to_bytes())
    honest.refused(honest.shown(terms, Cima=own), "under a different roster from this holder's")
    honest.refused(honest.shown(), "under a different roster", roster=roster)
    honest.refused(honest.shown(), "under a different roster", roster=Roster(ROSTER.cards[::-1]))


def test_the_coordinator_can_not_bring_another_key(honest):
    other = PublicKey(honest.public.n + 2)
    batch = Batch(LAYOUT, other.fingerprint, (mpz(2), mpz(4)), 1)
    terms = replace(honest.terms, key=other.fingerprint)
    theirs = Sum(other, terms, dict.fromkeys(THREE, batch))
    assert examine(ROSTER, theirs.shown(), other, ()).key == other.fingerprint
    honest.refused(theirs.shown(), "under a different key from this holder's")
    relabelled = Transcript(honest.terms, theirs.shown().contributions)
    honest.refused(relabelled, "Alba: its signature does not cover")


def test_the_coordinator_can_not_bring_another_layout(honest):
    finer = Layout((Field(20, 2.0**60, 2.0**-65),), 3, 2048)
    terms = replace(honest.terms, layout=finer)
    honest.refused(Transcript(terms, honest.shown().contributions), "Alba: its signature")
    honest.refused(honest.shown(terms), "Alba: this batch has a different layout")


def test_the_coordinator_can_not_ask_different_parties_different_questions(honest):
    other = replace(honest.terms, question=bytes(32))
    asked = honest.given(other)[CIMA]
    honest.refused(honest.shown(Cima=asked), "Cima: its signature does not cover")
    bent = Transcript(other, (*honest.shown().contributions[:2], asked))
    honest.refused(bent, "Alba: its signature does not cover")


def test_the_coordinator_can_not_pass_on_a_product_as_one_party_s_batch(honest):
    product = add(honest.public, [honest.batches[name] for name in THREE])
    assert product.contributions == 3
    bent = contribute(IDENTITIES[CIMA], honest.terms, product.to_bytes())
    honest.refused(honest.shown(Cima=bent), "Cima: its batch says that it holds several")


def test_terms_have_a_layout_for_exactly_their_parties(honest):
    fields = wire.split(TERMS, honest.terms.to_bytes(), 5, 8)
    for parties in (1, 2, 4, 2**32 - 1):
        with pytest.raises(InvalidLayout, match=f"layout is for {parties} parties, 3 take part"):
            replace(honest.terms, layout=replace(LAYOUT, parties=parties))
        fields[4] = fields[4].replace(b'"parties":3', b'"parties":%d' % parties)
        with pytest.raises(InvalidLayout, match="3 take part"):
            Terms.from_bytes(wire.join(TERMS, fields))
        fields[4] = fields[4].replace(b'"parties":%d' % parties, b'"parties":3')


def bad_batches(honest):
    """Batches that no honest party sends, as bytes, and the words that refuse them."""
    good, n = honest.batches[BORA], honest.public.n
    other = PublicKey(n + 2)
    finer = Layout((Field(20, 2.0**60, 2.0**-65),), 3, 2048)
    data = good.to_bytes()

    def numbers(first):
        return replace(good, ciphertexts=(mpz(first), good.ciphertexts[1])).to_bytes()

    return {
        "another key": (replace(good, key=other.fingerprint).to_bytes(), "not encrypted under key"),
        "another layout": (replace(good, layout=finer).to_bytes(), "a different layout"),
        "0": (numbers(0), "above 0"),
        "n": (numbers(n), "factor in common"),
        "k * n": (numbers(12345 * n), "factor in common"),
        "n**2": (numbers(n * n), "below n"),
        "several contributions": (replace(good, contributions=2).to_bytes(), "several"),
        "no contribution": (data[:56] + bytes(4) + data[60:], "contributions"),
        "cut off": (data[:-1], "bytes"),
        "longer": (data + b"\0", "bytes"),
        "another version": (data[:6] + b"02" + data[8:], "version"),
        "nothing": (b"", "not an encrypted batch"),
    }


def test_a_party_that_signs_a_bad_batch_is_blamed_before_anything_is_opened(honest):
    for data, words in bad_batches(honest).values():
        bad = contribute(IDENTITIES[BORA], honest.terms, data)
        with pytest.raises(FaultyParty, match=f"^Bora: .*{words}") as caught:
            received(ROSTER, honest.terms, honest.public, bad)
        assert caught.value.culprits == ("Bora",)
        honest.refused(honest.shown(Bora=bad), f"what it should have refused: Bora: .*{words}")


def test_a_party_whose_signature_is_wrong_is_blamed(honest):
    true = honest.given()
    other = replace(honest.terms, query="claims 2032")
    for bad in (
        replace(true[BORA], signature=true[ALBA].signature),
        replace(true[BORA], signature=true[BORA].signature[:-1]),
        replace(true[BORA], signature=b""),
        replace(true[BORA], batch=true[ALBA].batch),
        replace(true[ALBA], party=BORA),
        honest.given(other)[BORA],
    ):
        with pytest.raises(FaultyParty, match=r"^Bora: its signature does not cover") as caught:
            received(ROSTER, honest.terms, honest.public, bad)
        assert caught.value.culprits == ("Bora",)


@pytest.mark.parametrize("name", [DORA, "Nobody"])
def test_who_is_no_party_of_a_query_is_not_received(honest, name):
    bad = replace(honest.given()[ALBA], party=name)
    with pytest.raises(
        FaultyParty, match=f"^{name}: is not a party to query claims 2031"
    ) as caught:
        received(ROSTER, honest.terms, honest.public, bad)
    assert caught.value.culprits == (name,)


@pytest.mark.parametrize("name", ["", "x\nERROR forged", "\x1b[2J", "x" * 201])
def test_a_name_that_could_pass_for_something_else_is_refused(honest, name):
    with pytest.raises(InvalidIdentity, match="must be printable"):
        replace(honest.given()[ALBA], party=name)
    with pytest.raises(InvalidIdentity, match="must be printable"):
        replace(honest.terms, parties=(ALBA, BORA, name))


def test_a_layout_of_endless_digits_is_refused(honest):
    parts = wire.split(b"SAGGTE01", honest.terms.to_bytes(), 5, 99)
    with pytest.raises(MalformedMessage, match="not JSON"):
        Terms.from_bytes(wire.join(b"SAGGTE01", [*parts[:4], b"1" * 5000, *parts[5:]]))


def test_who_is_on_no_roster_is_not_received(honest):
    with pytest.raises(FaultyParty, match=r"^Cima: is not a party to query claims 2031") as caught:
        received(Roster(ROSTER.cards[:2]), honest.terms, honest.public, honest.given()[CIMA])
    assert caught.value.culprits == ("Cima",)


def test_the_coordinator_receives_what_honest_parties_send(honest):
    for name, given in honest.given().items():
        assert received(ROSTER, honest.terms, honest.public, given) == honest.batches[name]


def test_a_party_signs_no_terms_that_do_not_name_it(honest):
    with pytest.raises(FaultyCoordinator, match="does not name Dora among") as caught:
        contribute(IDENTITIES[DORA], honest.terms, b"batch")
    assert caught.value.culprits == ("coordinator",)


def test_terms_that_can_not_stand_are_refused(honest):
    for changed in (
        {"query": ""},
        {"query": "a\nb"},
        {"query": "x" * 201},
        {"question": b""},
        {"question": bytes(33)},
        {"roster": bytes(31)},
        {"parties": (ALBA, ALBA, BORA)},
    ):
        with pytest.raises(InvalidIdentity):
            replace(honest.terms, **changed)


def test_terms_have_one_encoding(honest):
    fields = wire.split(TERMS, honest.terms.to_bytes(), 5, 8)
    layout = fields[4]
    for other in (
        layout.replace(b":", b": "),
        layout.replace(b"0x1.0", b"0X1.0"),
        layout.replace(b"0x1.0", b"0x1.00"),
        layout.replace(b'"parties"', b'"parties":3,"parties"'),
        layout + b" ",
    ):
        assert other != layout
        with pytest.raises(
            (MalformedMessage, InvalidLayout), match=r"canonical encoding|float.hex"
        ):
            Terms.from_bytes(wire.join(TERMS, [*fields[:4], other, *fields[5:]]))
    for other in (b"", b"{", b"\xff", b"[" * 100_000):
        with pytest.raises(MalformedMessage):
            Terms.from_bytes(wire.join(TERMS, [*fields[:4], other, *fields[5:]]))


def test_every_part_of_the_terms_changes_their_digest(honest):
    terms = honest.terms
    others = [
        replace(terms, query="claims 2032"),
        replace(terms, question=bytes(32)),
        replace(terms, roster=bytes(32)),
        replace(terms, parties=(ALBA, CIMA, BORA)),
        replace(terms, parties=(ALBA, BORA, DORA)),
        replace(terms, key="0" * 32),
        replace(terms, layout=Layout((Field(20, 2.0**60, 2.0**-65),), 3, 2048)),
    ]
    assert len({other.digest for other in [terms, *others]}) == 8


def test_known_terms_and_known_contribution(honest):
    assert (
        honest.terms.digest.hex()
        == "6c9d94179bfa8fbe2e43c23178c992ed8d2f98ab90714837cbdc7ff16e856822"
    )
    known = contribute(IDENTITIES[ALBA], honest.terms, b"batch")
    assert (
        hashlib.sha256(known.to_bytes()).hexdigest()
        == "186dca4ad3164b758c46fbdfc4f682d8de7a0e2e9714c27cd16d516b0d60b8b2"
    )
    shown = Transcript(honest.terms, (known,)).to_bytes()
    assert (
        hashlib.sha256(shown).hexdigest()
        == "5943009caf98341d52d617c728ef9de280bf2824f7ae8c60d6f398c3e15b445f"
    )


def test_a_contribution_s_size_does_not_depend_on_its_values(private, honest):
    sizes = set()
    for value in (0.0, 1.0, -1.0, 2.0**60, -(2.0**60), 2.0**-64):
        batch = encrypt(private.public, LAYOUT, [np.full(20, value)])
        sizes.add(len(contribute(IDENTITIES[ALBA], honest.terms, batch.to_bytes()).to_bytes()))
    small = replace(batch, ciphertexts=(mpz(1), mpz(2)))
    sizes.add(len(contribute(IDENTITIES[ALBA], honest.terms, small.to_bytes()).to_bytes()))
    assert sizes == {8 + 3 * 4 + len("Alba") + 64 + LAYOUT.plaintexts * 512 + 64}


@pytest.mark.parametrize(
    ("culprits", "change"),
    [*(((BORA,), change) for change in CHANGES), ((ALBA, CIMA), "another count inside")],
)
def test_who_left_the_layout_is_named_and_nothing_of_what_it_sent(
    honest, private, culprits, change
):
    batches = {name: malformed(honest.batches[name], honest.public, change) for name in culprits}
    given = {
        name: contribute(IDENTITIES[name], honest.terms, batch.to_bytes())
        for name, batch in batches.items()
    }
    shown = honest.shown(**given)
    with pytest.raises(InconsistentSum):
        decrypt(private, examine(ROSTER, shown, honest.public, ()))
    blame = blame_layout(private, shown)
    assert blame.culprits == culprits
    assert str(blame) == (
        f"{', '.join(culprits)}: encrypted numbers that are not of the form all agreed on; "
        "no total was opened"
    )
