"""Which clauses of what committees work by a release folder answers, and which it cannot.

The clauses are named by number and told in words of this project: SATRE (Standard Architecture for
Trusted Research Environments) 2.0.1, section 3, and the Five Safes (Ritchie 2008).
"""

from dataclasses import dataclass
from typing import Literal

Answered = Literal["by this folder", "in part", "by the organisation"]


@dataclass(frozen=True)
class Clause:
    """A clause, and what answers it.

    Args:
        number: of the clause, or the name of one of the Five Safes.
        asks: in words of this project.
        answered: by what.
        where: to look.
    """

    number: str
    asks: str
    answered: Answered
    where: str


CHECKLIST = (
    Clause(
        "SATRE 3.3.07",
        "A policy says whether models may be exported, and under which technical controls.",
        "in part",
        "record.json, policy: the controls and their thresholds. That the organisation has adopted "
        "this policy is its own to say.",
    ),
    Clause(
        "SATRE 3.3.09",
        "A record that machines can read holds criteria, thresholds and versions of tools, and is "
        "bound to the package that leaves.",
        "by this folder",
        "record.json, with its schema; output hashes in it; checksums.sha256; the signature, where "
        "there is one.",
    ),
    Clause(
        "SATRE 3.1.16",
        "There is a plan for models made in the environment.",
        "by the organisation",
        "Model card and record can be a part of it.",
    ),
    Clause(
        "Five Safes: outputs",
        "What leaves does not disclose anybody.",
        "in part",
        "The criteria, the residual risks, and what was not checked.",
    ),
    Clause(
        "Five Safes: data",
        "The data are treated so that what could be disclosed is limited.",
        "by the organisation",
        "The record names the images by hash and number only.",
    ),
    Clause(
        "Five Safes: projects, people, settings",
        "The use is proper, the people are trusted, the place is controlled.",
        "by the organisation",
        "The record's list of controls says who controls what.",
    ),
)
