"""`lab audit`: logs that prove themselves."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from federated.cli.console import say, say_json

if TYPE_CHECKING:
    from federated.deployment.audit_logs import CheckedLog
    from federated.deployment.evidence import Manifest
    from federated.deployment.link.package import LinkManifest

FILE = click.Path(path_type=Path, dir_okay=False)


@click.group()
def audit() -> None:
    """Logs that prove themselves: verify, read, hand over."""


@audit.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--charter", "charter_file", type=FILE, help="Take the parties' keys from here.")
@click.option("--key", metavar="HEX|FILE", help="The party's public key, or its enrolment file.")
def verify(paths: tuple[Path, ...], charter_file: Path | None, key: str | None) -> None:
    """Check logs, extracts or packages; several logs are held against each other.

    Finds any line that was changed, removed, added or moved before the last checkpoint. Lines
    after it are chained and not signed: if more were cut off behind them, nobody can tell.

    \b
    lab audit verify ping-an/log.jsonl --charter charter.json
    lab audit verify folder-of-all-parties
    lab audit verify package.zip
    """
    from federated.deployment.audit_logs import logs_in, verify_together
    from federated.deployment.link.package import verify_any
    from lab.errors import ConfigurationError

    logs: list[Path] = []
    for path in paths:
        if path.is_dir():
            logs += logs_in(path)
        elif path.suffix == ".zip":
            _tell_package(path, verify_any(path), "holds")
        else:
            logs.append(path)
    if not logs and any(path.is_dir() for path in paths):
        raise ConfigurationError(f"{paths[0]}: holds no log")
    findings = verify_together(logs, _keys(charter_file), _key(key))
    for item in findings:
        _tell_verdict(item)
    if any(item.verdict.fault for item in findings):
        sys.exit(1)


def _keys(charter_file: Path | None) -> dict[str, bytes]:
    if charter_file is None:
        return {}
    from federated.deployment.charter import read_signed

    members = read_signed(charter_file).members
    return {member.name: bytes.fromhex(member.verifying) for member in members}


def _key(key: str | None) -> bytes:
    if key is None:
        return b""
    from federated.deployment.enrolment import Enrolment
    from lab.errors import ConfigurationError

    if Path(key).is_file():
        return bytes.fromhex(Enrolment.read(Path(key)).member.verifying)
    try:
        public_key = bytes.fromhex(key)
    except ValueError:
        public_key = b""
    if len(public_key) != 32:
        raise ConfigurationError(f"--key {key}: needs 64 hexadecimal digits, or an enrolment file")
    return public_key


def _tell_package(path: Path, manifest: Manifest | LinkManifest, verdict: str) -> None:
    run = getattr(manifest, "run", "")
    say(f"{path}: {f'run {run}' if run else 'a link'}, {len(manifest.files)} files, {verdict}")
    if manifest.without:
        say(f"  without the logs of {', '.join(manifest.without)}: nothing of theirs is shown")


def _tell_verdict(item: CheckedLog) -> None:
    verdict = item.verdict
    if verdict.fault:
        say(f"{item.path}: DOES NOT HOLD: {verdict.fault}")
        return
    omitted = f", {verdict.omitted:,} of them as a digest alone" if verdict.omitted else ""
    say(
        f"{item.path}: log of {verdict.party} holds: {verdict.lines:,} lines{omitted}, "
        f"{verdict.checkpoints:,} checkpoint{'s' * (verdict.checkpoints != 1)}"
    )
    if verdict.unsigned:
        say(
            f"  {verdict.unsigned:,} lines after the last checkpoint are not signed; if more were "
            "cut off behind them, nobody can tell"
        )
    if not item.key_known:
        say("  the key is the log's own word; --key or --charter brings the party's")
    if not item.beside and not item.witnesses and not verdict.omitted:
        say(
            "  no head file and no checkpoint that others keep: a log cut back to an older "
            "checkpoint would look the same"
        )
    elif item.witnesses:
        say(f"  agrees with {item.witnesses:,} checkpoints that others keep")


@audit.command("show")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--run", help="Lines of this run alone.")
@click.option("--kind", multiple=True, help="Lines of this kind alone; may be repeated.")
@click.option("--last", type=click.IntRange(1), help="The last lines alone.")
@click.option("--json", "as_json", is_flag=True, help="The lines as JSON.")
def show_log(
    path: Path, run: str | None, kind: tuple[str, ...], last: int | None, as_json: bool
) -> None:
    """Read a log: line, time in UTC, kind, what it tells. What is shown is not verified.

    \b
    lab audit show ping-an --kind release --kind refusal --last 20
    """
    from federated.deployment.audit_logs import logs_in
    from lab.audit import log_format as logs
    from lab.errors import ConfigurationError

    unknown = [name for name in kind if name not in logs.KINDS]
    if unknown:
        raise ConfigurationError(f"--kind {unknown[0]}: there are {', '.join(logs.KINDS)}")
    paths = logs_in(path) if path.is_dir() else [path]
    if len(paths) != 1:
        here = ", ".join(str(log) for log in paths) or "no log"
        raise ConfigurationError(f"{path}: one log is shown at a time, and here is {here}")
    entries = [
        entry
        for entry in logs.entries(logs.read_lines(paths[0]))
        if (run is None or entry.run == run) and (not kind or entry.kind in kind)
    ][-last if last else 0 :]
    if as_json:
        for entry in entries:
            say_json(vars(entry))
        return
    last_run = ""
    for entry in entries:
        if entry.run != last_run:
            say(f"run {_short(entry.run)}" if entry.run else "no run")
            last_run = entry.run
        first = [name for name in logs.KINDS.get(entry.kind, ()) if name in entry.told]
        names = [*first, *(name for name in entry.told if name not in first)]
        what = ", ".join(f"{_short(name)} {_short(entry.told[name])}" for name in names)
        time = entry.time[:19].replace("T", " ")
        query = f"{_short(entry.query)}: " * bool(entry.query)
        say(f"{entry.seq + 1:>6}  {time}  {entry.kind:<10}  {query}{what}")


def _short(value: Any) -> str:
    """A value in a line: numbers with commas, control signs as escapes, keys by their beginning."""
    from lab.text import printable

    text = f"{value:,}" if type(value) is int else str(value)
    text = printable(text)
    return text if len(text) <= 80 else f"{text[:16]}…"


@audit.command()
@click.argument("path", type=FILE)
@click.option("--run", required=True, help="The run's identifier in the log.")
@click.option("--out", required=True, type=FILE, help="Where to write the extract.")
def extract(path: Path, run: str, out: Path) -> None:
    """Write a party's extract of one run: its lines, and of all others a digest alone.

    \b
    lab audit extract ping-an/log.jsonl --run 20261124-005153-visits --out ping-an.jsonl
    """
    from lab.audit import log_format as logs
    from lab.files import write_whole

    lines = logs.extract(logs.read_lines(path), run)
    write_whole(out, b"".join(lines))
    say(f"{out}: run {run}, {len(lines):,} lines")


@audit.command()
@click.option("--run", default="", help="The run's folder, or its name below --runs.")
@click.option("--link", "of_link", is_flag=True, help="Of a link, instead of a run.")
@click.option("--runs", default="runs", envvar="LAB_RUNS", type=click.Path(path_type=Path))
@click.option("--charter", "charter_file", required=True, type=FILE)
@click.option(
    "--log",
    "logs",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    help="A member's log or extract, or a folder of logs; may be repeated.",
)
@click.option("--without", multiple=True, metavar="MEMBER", help="Leave this member's log out.")
@click.option("--out", required=True, type=FILE)
def export(
    run: str,
    of_link: bool,
    runs: Path,
    charter_file: Path,
    logs: tuple[Path, ...],
    without: tuple[str, ...],
    out: Path,
) -> None:
    """Write the supervisor's package of one run: charter, plan, approvals, receipts, scores, logs.

    Or that of a link: charter, logs, who asked how often, each question as both sides noted it.

    \b
    lab audit export --run 20261124-005153-visits --charter charter.json --log logs --out run.zip
    lab audit export --link --charter charter.json --log logs --out link.zip
    """
    from federated.deployment.audit_logs import logs_in
    from federated.deployment.evidence import export as package
    from federated.deployment.link.package import export_link, verify_any
    from lab.errors import ConfigurationError
    from lab.files import write_whole

    if of_link == bool(run):
        raise ConfigurationError("needs --run or --link, and not both")
    paths = [log for path in logs for log in (logs_in(path) if path.is_dir() else [path])]
    if of_link:
        write_whole(out, export_link(charter_file, paths, without))
    else:
        folder = Path(run) if Path(run).is_dir() else runs / run
        write_whole(out, package(folder, charter_file, paths, without))
    _tell_package(out, verify_any(out), "verified")
