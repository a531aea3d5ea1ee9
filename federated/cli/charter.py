"""`lab charter`: what the parties agreed on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from federated.cli.console import plain_table, print_heading, say, say_json, screen

if TYPE_CHECKING:
    from federated.deployment.charter import Charter, Consent, Signature
    from federated.deployment.enrolment import Enrolment

FILE = click.Path(path_type=Path, dir_okay=False)


class AnalysisName(click.ParamType):  # type: ignore[type-arg]  # older versions of click have no ParamType[...]
    """The name of an analysis. Their table is read with a value or for its help, not at start."""

    name = "analysis"

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        from federated.party.statistics import analyses

        return f"[{'|'.join(analyses())}]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from federated.party.statistics import analyses

        if value not in analyses():
            self.fail(f"{value!r} is not one of {', '.join(analyses())}", param, ctx)
        return str(value)


@click.group()
def charter() -> None:
    """The one document all parties share: who they are and what they agreed on."""


@charter.command()
@click.argument("file", type=FILE)
@click.option("--name", required=True, help="What the parties call what they do together.")
@click.option("--coordinator", required=True, type=FILE, help="The coordinator's enrolment file.")
@click.option(
    "--contract",
    "contracts",
    multiple=True,
    required=True,
    metavar="NAME|NAME-vN|NAME=VERSION",
    help="A data contract in force; may be repeated.",
)
@click.option(
    "--analysis",
    "analyses",
    multiple=True,
    type=AnalysisName(),
    default=("glm",),
    show_default=True,
    help="What may be computed; may be repeated.",
)
@click.option("--minimum-parties", type=int, default=3, show_default=True)
@click.option(
    "--parties-may-leave",
    is_flag=True,
    help="Runs go on without a party; totals with it and without it may show its own sums.",
)
@click.option("--minimum-rows", type=int, default=10, show_default=True)
@click.option("--key-bits", type=int, default=3072, show_default=True)
@click.option("--epsilon", type=float, default=0.0, help="Privacy budget of each party, for ever.")
@click.option("--delta", type=float, default=0.0)
def init(
    file: Path,
    name: str,
    coordinator: Path,
    contracts: tuple[str, ...],
    analyses: tuple[str, ...],
    minimum_parties: int,
    parties_may_leave: bool,
    **limits: Any,
) -> None:
    """Write a charter whose only member is its coordinator.

    \b
    lab charter init charter.json --name exchange --coordinator us.enrolment.json --contract claims-v1
    """
    from federated.deployment import charter as charters
    from federated.deployment.enrolment import Enrolment
    from lab.errors import ConfigurationError
    from lab.records import parse

    if file.exists():
        raise ConfigurationError(f"{file}: exists; lab charter add adds to it")
    new_charter = charters.new(
        name,
        Enrolment.read(coordinator),
        analyses=analyses,
        contracts=dict(map(_contract, contracts)),
        minimum_parties=minimum_parties,
        parties_may_leave=parties_may_leave,
        limits=parse(charters.CharterLimits, limits, where="limits"),
    )
    charters.write(file, new_charter, {})
    say(f"{file}: charter {new_charter.name}, version 1; next: lab charter add {file} ENROLMENT…")


def _contract(text: str) -> tuple[str, int]:
    """Name and version; ``claims-v1`` is a name of version 1, unless a version is told beside it."""
    from lab.errors import ConfigurationError

    name, _, number = text.partition("=")
    suffix = re.search(r"-v(\d+)$", name)
    if not name or (number and not number.isdecimal()):
        raise ConfigurationError(f"--contract {text}: needs the form NAME, NAME-vN or NAME=VERSION")
    version = int(number or (suffix[1] if suffix else 1))
    if suffix and int(suffix[1]) != version:
        raise ConfigurationError(
            f"--contract {text}: {name} names version {suffix[1]}, and {version} is told beside it"
        )
    return name, version


@charter.command()
@click.argument("file", type=FILE)
@click.argument("files", nargs=-1, required=True, type=FILE)
def add(file: Path, files: tuple[Path, ...]) -> None:
    """Add members by their enrolment files, or signatures that members sent back.

    \b
    lab charter add charter.json ping-an.enrolment.json
    lab charter add charter.json from-ping-an/charter.signatures.json
    """
    from federated.deployment import charter as charters
    from federated.deployment.charter import Charter
    from federated.deployment.enrolment import Enrolment
    from lab.files import read_json

    charter = Charter.read(file)
    signatures = charters.read_signatures(charters.signatures_beside(file))
    for path in files:
        if "member" in read_json(path):
            charter = _with(charter, signatures, Enrolment.read(path))
        else:
            signatures |= _merged(charter, path)
    charters.write(file, charter, signatures)
    _tell_missing(charters.read(file))


@charter.command()
@click.argument("file", type=FILE)
@click.option(
    "--fund", required=True, metavar="NAME=KEY", help="The fund, and what names a person."
)
@click.option(
    "--insurer",
    "insurers",
    multiple=True,
    required=True,
    metavar="NAME=KEY",
    help="An insurer joined to it, and its column; a key of several: NAME=KEY,KEY; may be repeated.",
)
@click.option(
    "--learns",
    type=click.Choice(["hidden", "both", "insurer", "fund"]),
    default="hidden",
    show_default=True,
    help="Who is told which persons are common.",
)
@click.option(
    "--cap", type=click.IntRange(1), required=True, help="Rows that each set is filled up to."
)
@click.option(
    "--product", type=click.Choice(["triples", "paillier"]), default="triples", show_default=True
)
@click.option("--minimum-persons", type=click.IntRange(1), default=10, show_default=True)
def pair(file: Path, fund: str, insurers: tuple[str, ...], **terms: Any) -> None:
    """Agree that a fund knows the insurers' persons in other columns; all members sign anew.

    \b
    lab charter pair charter.json --fund fund=card --insurer ping-an=member --cap 20000
    """
    from federated.deployment import charter as charters
    from federated.deployment.pairs import Pairs
    from lab.records import parse

    charter = charters.Charter.read(file)
    keys = dict(map(_key, (fund, *insurers)))
    pairs = parse(Pairs, {"fund": _key(fund)[0], "keys": keys, **terms}, where="pairs")
    _next(file, charters.with_terms(charter, pairs=pairs))


@charter.command("link")
@click.argument("file", type=FILE)
@click.argument("terms", type=FILE)
def agree_on_link(file: Path, terms: Path) -> None:
    """Agree on what payers tell each other of a claim or a condition; all members sign anew.

    TERMS is a file as federated/link/link.toml: keys, caps, groups, purposes, rates.

    \b
    lab charter link charter.json link.toml
    """
    from federated.deployment import charter as charters
    from federated.link.charter import LinkCharter

    _next(file, charters.with_terms(charters.Charter.read(file), link=LinkCharter.read(terms)))


@charter.command("scores")
@click.argument("file", type=FILE)
@click.argument("terms", type=FILE)
def agree_on_scores(file: Path, terms: Path) -> None:
    """Agree on what sides tell each other of one person, by a file as federated/queries/person/scores.toml.

    \b
    lab charter scores charter.json scores.toml
    """
    from federated.deployment import charter as charters
    from federated.queries.person.terms import ScoreTerms

    _next(file, charters.with_terms(charters.Charter.read(file), scores=ScoreTerms.read(terms)))


def _next(file: Path, charter: Charter) -> None:
    """The next version of a charter, which nobody has signed."""
    from federated.deployment import charter as charters

    charters.write(file, charter, {})
    say(f"{file}: version {charter.version}; all members sign it now")


def _key(text: str) -> tuple[str, tuple[str, ...]]:
    """A side's name and the columns of its key."""
    from lab.errors import ConfigurationError

    name, equals, columns = text.partition("=")
    if not (name and equals and all(columns.split(","))):
        raise ConfigurationError(f"{text}: needs the form NAME=KEY, as fund=card")
    return name, tuple(columns.split(","))


def _with(charter: Charter, signatures: dict[str, Signature], enrolment: Enrolment) -> Charter:
    from federated.deployment import charter as charters

    member = enrolment.member
    next_charter = charters.with_member(charter, enrolment)
    say(f"{member.name}, {member.role}; compare by telephone: {member.fingerprint}")
    if signatures:
        say(f"version {next_charter.version}: the signatures of version {charter.version} are void")
        signatures.clear()
    if charter.key is not None and next_charter.key is None:
        say("the split key was dealt to others; deal it again")
    return next_charter


def _merged(charter: Charter, path: Path) -> dict[str, Signature]:
    """Signatures of a file that are good for this charter; what is not good is an error."""
    from federated.deployment import charter as charters
    from lab.errors import ConfigurationError

    signatures = charters.read_signatures(path)
    absent = charters.missing(charter, signatures)
    for name in signatures:
        if name in absent or all(name != member.name for member in charter.members):
            raise ConfigurationError(f"{path}: {name} {absent.get(name, 'is not a member')}")
    return signatures


@charter.command()
@click.argument("file", type=FILE)
@click.option("--identity", required=True, type=FILE, help="The member's own identity file.")
def sign(file: Path, identity: Path) -> None:
    """Agree to a charter as one of its members.

    \b
    lab charter sign charter.json --identity node/identity.json
    """
    from federated.deployment import charter as charters
    from federated.deployment.charter import Charter
    from federated.deployment.enrolment import load_identity

    charter = Charter.read(file)
    own = load_identity(identity)
    beside = charters.signatures_beside(file)
    signatures = charters.read_signatures(beside) | {own.card.name: charters.sign(charter, own)}
    charters.write(file, charter, signatures)
    say(f"{own.card.name} signed charter {charter.digest}")
    if own.card.name != charter.coordinator:
        say(f"hand {beside} back to {charter.coordinator}")


@charter.command()
@click.argument("file", type=FILE)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
def show(file: Path, as_json: bool) -> None:
    """Show a charter: members, keys, limits, who signed it.

    \b
    lab charter show charter.json
    """
    from federated.deployment import charter as charters

    consent = charters.read(file)
    charter = consent.charter
    if as_json:
        summary = {"digest": charter.digest, "unsigned": consent.missing}
        say_json(summary | charter.model_dump(mode="json"))
        return
    console = screen()
    print_heading(console, charter.name, f", version {charter.version}")
    table = plain_table("member", "role", "fingerprint", "signed")
    for member in charter.members:
        signature = "no" if member.name in consent.missing else "yes"
        table.add_row(member.name, member.role, member.fingerprint, signature)
    console.print(table)
    limits = charter.limits
    contracts = ", ".join(f"{k} version {v}" for k, v in charter.contracts.items())
    for label, text in (
        ("totals", _opens(charter)),
        ("parties", charter.parties_line),
        ("rows", f"{limits.minimum_rows} or more behind a party's sum"),
        ("analyses", ", ".join(charter.analyses)),
        ("contracts", contracts),
        *_pairs(charter),
        *_scores(charter),
        *_link(charter),
        ("budget", f"ε {limits.epsilon:g}, δ {limits.delta:g} for each party, for ever"),
        ("digest", charter.digest),
    ):
        console.print(f"{label:<10}{text}", highlight=False, soft_wrap=True)
    _tell_missing(consent)


def _pairs(charter: Charter) -> list[tuple[str, str]]:
    """Whose persons are joined, and what is told of them."""
    if (pairs := charter.pairs) is None:
        return []
    sides = ", ".join(
        f"{name} by {' and '.join(key)}" for name, key in pairs.keys.items() if name != pairs.fund
    )
    who = {"hidden": "nobody", "both": "both sides"}.get(pairs.learns, f"the {pairs.learns} alone")
    text = (
        f"fund: {pairs.fund} by {' and '.join(pairs.keys[pairs.fund])}; insurers: {sides}; {who} is told "
        f"who is common; sets of {pairs.cap:,}, products by {pairs.product}, "
        f"{pairs.minimum_persons} persons or more"
    )
    return [("joined", text)]


def _scores(charter: Charter) -> list[tuple[str, str]]:
    """What sides of pairs tell each other of one person."""
    if (terms := charter.scores) is None:
        return []
    how = (
        "EXACT" if terms.exact else f"as {', '.join(map(terms.band, range(len(terms.bands) + 1)))}"
    )
    who = ", ".join(f"{purpose} (the {role})" for purpose, role in terms.purposes.items())
    text = (
        f"of one person who signed, by {' and '.join(terms.kinds)}, {how}; to {who}; "
        f"never to {', '.join(terms.refused_purposes) or '–'}; {terms.scores_of_a_person} of a person in {terms.period_days} days, "
        f"{terms.asker_a_month:,} an asker in 30 days"
    )
    return [("scores", text)]


def _link(charter: Charter) -> list[tuple[str, str]]:
    """What payers tell each other of a claim or a condition."""
    if (link := charter.link) is None:
        return []
    told = "that another has it" if link.tells == "match" else "that another has it, and who"
    keys = ", ".join(f"'{key.name}'" for key in link.key)
    lines = [("claims", f"by {keys}, of a payer's own {told}; {link.desk.asks_a_day:,} asks a day")]
    if (terms := link.condition) is not None:
        seen = "the person" if terms.look_up == "open" else "neither person nor answer"
        lines.append(
            (
                "condition",
                f"asked of {terms.fund}, which sees {seen}: {', '.join(terms.groups)}; to "
                f"{', '.join(terms.purposes)}; never to {', '.join(terms.refused_purposes) or '–'}; "
                f"{terms.insurer_a_day:,} questions an insurer, {terms.person_a_day} a person a day",
            )
        )
    return lines


def _opens(charter: Charter) -> str:
    if charter.key is None:
        return "no key yet: lab keys deal"
    who = "opened by " + ", ".join(charter.key.by) + (" together" * (charter.key.opens == "split"))
    return f"{who}; paillier, {charter.key.public.bits} bits, {charter.key.public.fingerprint}"


def _tell_missing(consent: Consent) -> None:
    for name, reason in consent.missing.items():
        say(f"{name}: {reason}")
    if not consent.missing:
        say(f"signed by all {len(consent.charter.members)} members")
