"""Scores of single persons at a node: by the models that runs brought home, on its own rows."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from federated.deployment.charter import Charter
from federated.deployment.folders import LINK_FOLDER, SCORES_FOLDER
from federated.deployment.node.results import joined_runs, plan_of
from federated.deployment.node.rules.settings import NodeSettings
from federated.deployment.node.sides.policy import SidePolicy
from federated.link.party_log import LOG
from federated.link.services.fund_record import read_person_keys
from federated.link.services.process import LinkMember
from federated.queries.person.asked import history_of
from federated.queries.person.holdings import check_terms, holding_of, scored_model
from federated.queries.person.service import ScoreRules, ScoreService
from federated.queries.person.sides import ScoredSide
from federated.queries.person.terms import ScoreTerms
from lab.audit.log_format import entries, read_lines
from lab.errors import ConfigurationError, PolicyError

#: Models that are kept at hand, each with the rows of one state of the table.
SIDES_KEPT = 8


def score_service(
    folder: Path, settings: NodeSettings, charter: Charter, member: LinkMember
) -> ScoreService:
    """The service of a side of the charter's pairs. folder: the node's. Raises ConfigurationError."""
    assert charter.pairs is not None and charter.scores is not None
    policy, own = SidePolicy(folder, settings, charter), settings.scores
    signed = charter.scores
    spelling = policy.contract().columns[person_column(policy)].spelling
    home = folder / LINK_FOLDER
    keys = settings.link.person_keys if settings.link else None
    policy.keyed()  # a table that breaks its contract is told now, not to whom asks

    @lru_cache(SIDES_KEPT)
    def read(digest: str, peer: str, table: object) -> ScoredSide:
        return _side(folder, digest, peer, policy, signed, member)

    def side_of(digest: str, peer: str) -> ScoredSide:
        return read(digest, peer, _state_of(policy))

    past = entries(read_lines(home / LOG)) if (home / LOG).exists() else ()
    rules = ScoreRules(
        roles={name: charter.pairs.role(name) for name in charter.pairs.peers(settings.name)},
        terms=signed if own is None else own.tightened(signed),
        answers=own is not None,
        approval=own is not None and own.approval == "always",
        person_keys=read_person_keys(folder / keys, spelling) if keys else {},
    )
    return ScoreService(home / SCORES_FOLDER, member, rules, side_of, history_of(past))


def _state_of(policy: SidePolicy) -> object:
    """Another one where the file of the table has changed; of a database always the same, so that its rows
    are those of when the process was started."""
    path = Path(policy.data.path or "")
    return (path.stat().st_mtime_ns, path.stat().st_size) if path.is_file() else None


def person_column(policy: SidePolicy) -> str:
    """The column that names a person. Raises ConfigurationError where that takes several."""
    if len(policy.own.key) > 1:
        raise ConfigurationError(
            f"scores: a consent names a person by one column, and joined.key has "
            f"{' and '.join(policy.own.key)}"
        )
    return policy.own.key[0]


def _side(
    folder: Path,
    digest: str,
    peer: str,
    policy: SidePolicy,
    terms: ScoreTerms,
    member: LinkMember,
) -> ScoredSide:
    run = joined_runs(folder).get(digest)
    if run is None:
        raise PolicyError(
            f"{member.name} has no model {digest[:16]} of a run of these sides in its results",
            "model",
        )
    plan, model = plan_of(run), scored_model(run)
    if peer not in {block.name for block in plan.experiment.joined}:
        raise PolicyError(f"{peer} took no part in the run of this model", "model")
    check_terms(terms, model)
    frame = policy.keyed()[0].frame
    holding = holding_of(model, frame, plan.owner, plan.experiment.data.cap, policy.role)
    spelling = policy.contract().columns[person_column(policy)].spelling
    law = model.task.law
    return ScoredSide(
        member.identity, policy.role, terms, digest, law, holding, member.log, spelling
    )
