"""A loss-threshold membership attack on the final adapter (Yeom et al., arXiv 1709.01604).

No canaries: members are the site's training records, strangers its held-out ones, and a record is
called a member when its loss under the final adapter is below a threshold. It is the attack that
anyone with the adapter and a record can make, and far weaker than what ε has to answer for.

The bound on ε takes records' outcomes as independent and members and strangers as drawn alike. Both
are approximations: one training run trained on all members, and a unit's records resemble each
other. The threshold is chosen on one half of the records and judged on the other.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from scipy import stats

from lorica.common.adapter.state import State
from lorica.common.cache.prefix import PrefixCache, predict_logits
from lorica.common.data.names.plan_labels import label_indices
from lorica.common.data.records import Records
from lorica.common.tasks.text_classification import TextClassifier, encode
from lorica.simulations.audit.evidence.bounds import attack_bound
from lorica.simulations.audit.evidence.findings import Finding, Scatter, share_of_error
from lorica.simulations.audit.watched.subject import Subject

RUN = "audit-membership"
LOW_RATES = (0.001, 0.01, 0.1)
"""False-positive rates at which the true-positive rate is reported."""


def membership_audit(subject: Subject, *, confidence: float, seed: int) -> tuple[Finding, Scatter]:
    """Train the site once, without canaries, and attack the final adapter.

    Args:
        subject: the site.
        confidence: of all bounds of the audit together.
        seed: of the halves on which the threshold is chosen and judged.

    Raises:
        LoricaError: why the site would refuse.
    """
    begun = time.monotonic()
    state = subject.train(subject.plain_trainer(), RUN)
    members = log_odds(subject, state, subject.records)
    strangers = log_odds(subject, state, subject.strangers)
    error = share_of_error("membership", confidence)
    generator = np.random.default_rng([seed, 3])
    bound = split_bound(members, strangers, subject.plan.privacy.delta, error, generator)
    finding = Finding(
        "membership",
        bound,
        1.0 - error,
        "the final adapter is (ε, δ)-DP for an ε below the bound, and records' outcomes are "
        "independent",
        time.monotonic() - begun,
        {
            "members": len(members),
            "strangers": len(strangers),
            "auc": auc(members, strangers),
            "tpr_at_fpr": {str(rate): tpr_at(members, strangers, rate) for rate in LOW_RATES},
        },
    )
    return finding, Scatter("Membership: log-odds of each record's own label", members, strangers)


def log_odds(subject: Subject, state: State, records: Records) -> np.ndarray:
    """log p / (1 - p) of every record's own label under an adapter, shape (n,). A loss -log p
    below a threshold is one of these above another; differences are easier to see."""
    plan = subject.plan
    classifier = TextClassifier(subject.backbone, plan)
    classifier.load_state(state)
    encoded = encode(subject.backbone, records.texts, plan.training.max_length)
    logits = predict_logits(classifier, PrefixCache(classifier, encoded))
    labels = torch.tensor(label_indices(records, plan.task.labels, where="The test data"))
    own = logits.double().log_softmax(1).gather(1, labels[:, None])
    rest = logits.double().scatter(1, labels[:, None], -torch.inf).logsumexp(1, keepdim=True)
    return (own + logits.double().logsumexp(1, keepdim=True) - rest)[:, 0].numpy()


def auc(members: np.ndarray, strangers: np.ndarray) -> float:
    """Probability that a member scores above a stranger; ties count half."""
    statistic = stats.mannwhitneyu(members, strangers).statistic
    return float(statistic) / (len(members) * len(strangers))


def tpr_at(members: np.ndarray, strangers: np.ndarray, rate: float) -> float:
    """Share of members above the threshold that at most a share ``rate`` of strangers passes."""
    allowed = int(rate * len(strangers))
    threshold = np.sort(strangers)[::-1][allowed]
    return float((members > threshold).mean())


def split_bound(
    members: np.ndarray,
    strangers: np.ndarray,
    delta: float,
    error: float,
    generator: np.random.Generator,
) -> float:
    """Lower bound on ε from the threshold that does best on one half, judged on the other."""
    halves = [np.array_split(generator.permutation(scores), 2) for scores in (members, strangers)]
    (tried, judged), (tried_out, judged_out) = halves
    thresholds = np.unique(np.concatenate([tried, tried_out]))
    best = max(thresholds, key=lambda t: _bound_at(float(t), tried, tried_out, delta, error))
    return _bound_at(float(best), judged, judged_out, delta, error)


def _bound_at(
    threshold: float, members: np.ndarray, strangers: np.ndarray, delta: float, error: float
) -> float:
    hits, alarms = int((members > threshold).sum()), int((strangers > threshold).sum())
    return attack_bound(hits, len(members), alarms, len(strangers), delta, error)
