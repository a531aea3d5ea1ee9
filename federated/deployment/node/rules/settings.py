"""A node's folder: its settings in ``node.toml``, its keys, and the admission to an exchange."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, FiniteFloat

from federated.deployment import certificates
from federated.deployment.charter import Analysis
from federated.deployment.enrolment import (
    ADMISSION,
    CERTIFICATE_REQUEST,
    Admission,
    Enrolment,
    Role,
)
from federated.deployment.folders import make_folder, make_party
from federated.link.own_terms import OwnLink
from federated.queries.person.terms import OwnScores
from lab.audit.approvals import APPROVED, REQUESTS
from lab.errors import ConfigurationError
from lab.files import write_whole
from lab.privacy.disclosure import Rules
from lab.queries.query_table import Budget
from lab.records import Strict, parse, read_toml
from lab.tables.sources import SOURCES

SETTINGS, KEY, CERTIFICATE, AUTHORITY = "node.toml", "tls.key", "node.pem", "authority.pem"
STATE = "runs"
#: Where an insurer keeps what it was asked in questions, and what they cost.
QUESTIONS = "questions"


class OwnData(Strict):
    """``[data]``: where the rows are, who they belong to, and which are for testing.

    encoding: of a CSV that is not UTF-8;
    person: the column that says who a row belongs to, "" where each row is a person of its own;
    test_share: of persons whose rows are for testing, where no column marks them; validation_share:
    of those left, who judge a model while it is fitted. Both are drawn with a key of this node's.
    caps: the largest value by column, to which larger ones are lowered in every model.
    """

    path: str | None = None
    source: str | None = None
    table: str | None = None
    query: str | None = None
    contract: str | None = None
    encoding: str | None = None
    person: str | None = None
    test_column: str | None = None
    test_value: str | int | None = None
    test_share: float = Field(default=0.2, ge=0, lt=1)
    validation_share: float = Field(default=0.2, gt=0, lt=1)
    caps: dict[str, FiniteFloat] = Field(default_factory=dict)


class NodeLimits(Strict):
    """``[limits]``: what this insurer takes part in.

    hiding: the one way in which its sums leave; approval: whether a person must approve each
    experiment; shows_receipt: whether the coordinator may see what left, with the rows behind it;
    noised: whether questions are answered with noise alone; quota: for how many cells of questions
    each asker may ask, ever; minimum_rows: persons behind any cell of a question or a profile, and
    rows behind a model's sum.
    """

    analyses: tuple[Analysis, ...] = ("glm",)
    never_leaves: tuple[str, ...] = ()
    minimum_rows: int = Field(default=10, ge=1)
    minimum_parties: int = Field(default=3, ge=3)
    askers: tuple[str, ...] = ()
    approval: Literal["never", "always"] = "never"
    hiding: Literal["paillier", "masks", "clear"] = "paillier"
    shows_receipt: bool = True
    announces: tuple[str, ...] = ()
    noised: bool = False
    quota: int = Field(default=10_000, ge=0)


class OwnPairs(Strict):
    """``[joined]``: what this side gives into products with others that know the same persons.

    key: the columns that name a person; products: by the other side the columns that may enter
    products with it, "*" for all; cuts: by an insurer the columns of which trees may tell it cuts, none
    unless named, "*" for all; bits_per_person: cuts that each may be told, ever, one bit about each person
    in common; equations_per_person: numbers that depend on a column and may be opened, ever, for each
    person in common; alignments: that are begun with each other side, ever.
    """

    key: tuple[str, ...] = Field(min_length=1)
    products: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    cuts: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    bits_per_person: int = Field(default=100, ge=0)
    equations_per_person: float = Field(default=0.5, gt=0)
    alignments: int = Field(default=10, ge=1)


class NodeSettings(Strict):
    """``node.toml``. disclosure: a file of rules by which answers are released, else the lab's own."""

    name: str
    role: Role
    disclosure: str | None = None
    data: OwnData | None = None
    limits: NodeLimits = NodeLimits()
    joined: OwnPairs | None = None
    scores: OwnScores | None = None
    link: OwnLink | None = None
    budget: Budget | None = None

    @classmethod
    def read(cls, folder: Path) -> Self:
        return parse(cls, read_toml(folder / SETTINGS), where=str(folder / SETTINGS))

    def rules(self, folder: Path) -> Rules:
        """The rules of disclosure that this party keeps. Raises :class:`ConfigurationError`."""
        return Rules.read(None if self.disclosure is None else folder / self.disclosure)


JOINED = """
[joined]                       # with others that know the same persons in other columns
{key:<31}# the columns that name a person
{products:<31}# by the other side the columns that may enter products
                               # with it, "*" for all
{cuts:<31}# by an insurer the columns of which trees may tell it
                               # cuts, "*" for all: who is on which side of each
bits_per_person = 100          # cuts that each may be told, ever
equations_per_person = 0.5     # numbers about a column that may be opened, ever, for
                               # each person in common
alignments = 10                # begun with each other side, ever

{scores}[scores]                       # what of one person others are told here (lab link serve); without
{scores}                               # this section nothing; each at most what all signed
{scores}a_month = {a_month:<21}# scores that each asker may be told in 30 days
# of_a_person = 1              # of one person, in the charter's period; purposes likewise
# kinds = ["glm", "trees"]     # of models; of trees an asker can read more than of a glm
# approval = "always"          # a person approves each score first
"""
TEMPLATE = """# What this insurer's node holds and takes part in. Nothing outside can loosen it.
name = {name}
role = {role}
# disclosure = "rules.toml"    # rules by which answers are released; without it the lab's own

[data]
{data}
{person:<31}# the column of who a row belongs to, "" if each is a person's;
                               # questions and profiles count persons, and need it
{test_column:<31}# rows where it has test_value are for testing;
{test_value:<31}# without it they are drawn with a key of this node's:
test_share = 0.2               # this share of persons, whatever a plan says
validation_share = 0.2         # of the others: who judge a model while it is fitted
{caps:<31}# larger values of these columns are lowered to this in
                               # every model, and of others in none

[limits]
{analyses:<31}# of: glm, network, trees, questions, profiles
never_leaves = []              # columns that take part in nothing
minimum_rows = 10              # persons behind a cell of a question or a profile, rows
                               # behind a model's sum, or it stays here
minimum_parties = 3            # parties behind a sum, or it stays here
askers = []                    # who may ask; empty: the charter's coordinator
approval = "never"             # "always": a person approves each experiment first
hiding = "paillier"            # the one way in which sums leave
shows_receipt = true           # the coordinator may see what left, and the rows behind it
announces = []                 # columns whose names of levels may be told
noised = false                 # true: questions are answered with noise alone
quota = 10000                  # cells of questions that each asker may ask for, ever

{joined}
# [link]                       # what other payers may ask (lab link): limits of its own, each at most
#                              # the charter's
# claims = "claims.parquet"    # compared at night
# asks_a_day = 1000            # of each payer, about single claims
# conditions = "record.csv"    # of a fund: person, group, first (a day, or nothing)
# groups = ["diabetes"]        # that may be asked about; purposes likewise
# insurer_a_day = 100          # questions about conditions; person_a_day, groups_of_a_person,
#                              # persons_of_a_group likewise
# approval = "always"          # a person approves each question about a condition first

# [budget]                     # what noised answers may cost, for ever; without it none is given
# epsilon = 1.0
# delta = 1e-6
"""


def init(
    folder: Path,
    name: str,
    role: Role,
    path: str | None = None,
    contract: str | None = None,
    *,
    encoding: str | None = None,
    person: str | None = None,
    test: tuple[str, str | int] | None = None,
    caps: Mapping[str, float] | None = None,
    analyses: tuple[str, ...] = ("glm",),
    joined: OwnPairs | None = None,
    scores: OwnScores | None = None,
) -> Enrolment:
    """A new node in a new folder: keys, a commented node.toml, the enrolment to hand over.

    encoding: of a CSV that is not UTF-8; person: the column of who a row belongs to, "" where each is
    a person's; test: the column and the value that mark rows for testing; caps: the largest value by
    column; joined, scores: of a side of joined pairs.
    """
    make_folder(folder)
    for subfolder in (REQUESTS, APPROVED, STATE):
        (folder / subfolder).mkdir(mode=0o700)
    tls = certificates.new_key()
    certificates.write_key(folder / KEY, tls)
    certificates.request(folder / CERTIFICATE_REQUEST, tls, name)
    enrolment = make_party(folder, name, role, certificates.openssh_line(tls))
    names = {"name": _toml(name), "role": _toml(role)}
    if role == "supervisor":
        rules = '# disclosure = "rules.toml"    # rules by which answers to questions are released'
        text = "\n".join([*(f"{k} = {v}" for k, v in names.items()), rules]) + "\n"
    else:
        kind = "source" if path in SOURCES else "path"
        data = {kind: path, "contract": contract, "encoding": encoding}
        column, value = test or ("held_out", 1)
        fields = {
            "person": f"{'# ' * (person is None)}person = {_toml(person or '')} ",
            "test_column": f"{'# ' * (test is None)}test_column = {_toml(column)} ",
            "test_value": f"{'# ' * (test is None)}test_value = {_toml(value)} ",
            "analyses": f"analyses = {_toml(list(analyses))} ",
            "caps": f"caps = {_table(caps or {})} ",
            "data": "\n".join(f"{name} = {_toml(v)}" for name, v in data.items() if v),
            "joined": _joined(joined, scores) if joined else "",
        }
        text = TEMPLATE.format(**names, **fields)
    write_whole(folder / SETTINGS, text.encode(), 0o600)  # an address may hold a password
    return enrolment


def _joined(own: OwnPairs, scores: OwnScores | None) -> str:
    """The sections of a side of joined pairs."""
    columns = {
        name: f"{name} = {_table({peer: list(each) for peer, each in by_peer.items()})} "
        for name, by_peer in (("products", own.products), ("cuts", own.cuts))
    }
    limits = {"scores": "" if scores else "# ", "a_month": scores.a_month if scores else 100}
    return JOINED.format(key=f"key = {_toml(list(own.key))} ", **columns, **limits)


def _table(values: Mapping[str, object]) -> str:
    """A table of TOML on one line."""
    return f"{{{', '.join(f'{_toml(k)} = {_toml(v)}' for k, v in values.items())}}}"


def _toml(value: object) -> str:
    """Text, a whole number or a list of these; JSON's form of them is TOML's too."""
    return json.dumps(value, ensure_ascii=False)


def admission_of(folder: Path, name: str) -> Admission:
    """The admission the exchange gave; its certificates are put where TLS reads them."""
    path = folder / ADMISSION
    if not path.exists():
        raise ConfigurationError(
            f"{path}: missing; send the coordinator {folder / 'enrolment.json'}, and put the "
            f"admission it returns here"
        )
    admission = Admission.read(path)
    own = certificates.openssh_line(certificates.read_key(folder / KEY))
    if admission.member.name != name or admission.member.flower_key != own:
        raise ConfigurationError(f"{path}: the admission is for another node or for other keys")
    write_whole(folder / CERTIFICATE, admission.certificate.encode())
    write_whole(folder / AUTHORITY, admission.authority.encode())
    return admission
