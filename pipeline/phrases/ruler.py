"""The rules of spaCy's attribute ruler that decide noun chunks: four in five of them do not, and cost as much time.

The ruler matches its rules against the tags and relations of all tokens; where several match a token, the later one
counts. Noun chunks look at relations, and at whether the part of speech is nominal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

_DECIDING_ATTRIBUTES = frozenset({"TAG", "POS", "DEP"})
NOMINAL = frozenset({"NOUN", "PROPN", "PRON"})

_Rule: TypeAlias = Mapping[str, Any]


def keep_deciding_rules(ruler: Any) -> None:
    """Drop the rules without which every token is as nominal as before, and has the same tag and relation."""
    kept: list[_Rule] = []
    for rule in ruler.patterns:
        attributes = {name: value for name, value in rule["attrs"].items() if name in _DECIDING_ATTRIBUTES}
        lean = {**rule, "attrs": attributes}
        if attributes and not _changes_nothing(lean, kept):
            kept.append(lean)
    ruler.clear()
    ruler.add_patterns(kept)


def _changes_nothing(rule: _Rule, before: list[_Rule]) -> bool:
    """Tell whether a rule says no more than those before it that may have matched the same token."""
    if set(rule["attrs"]) != {"POS"}:
        return False
    part, earlier = rule["attrs"]["POS"], [each for each in before if _may_meet(rule, each)]
    if part not in NOMINAL:
        return not any(each["attrs"].get("POS") in NOMINAL for each in earlier)
    # "PRP" is a pronoun, and so "PRP" that reads "she" is.
    return bool(earlier) and earlier[-1]["attrs"] == rule["attrs"] and _is_for_all_of_a_tag(earlier[-1])


def _may_meet(rule: _Rule, other: _Rule) -> bool:
    """Tell whether two rules could match one token; their tags alone are looked at."""
    tags, others = _tags(rule), _tags(other)
    return tags is None or others is None or not tags.isdisjoint(others)


def _tags(rule: _Rule) -> frozenset[str] | None:
    """Return the tags of which a token that the rule changes must have one; None where there is no such list."""
    tags: set[str] = set()
    for pattern in rule["patterns"]:
        wanted = pattern[rule["index"]].get("TAG")
        if isinstance(wanted, Mapping):
            wanted = wanted.get("IN")
        if not wanted:
            return None
        tags.update([wanted] if isinstance(wanted, str) else wanted)
    return frozenset(tags)


def _is_for_all_of_a_tag(rule: _Rule) -> bool:
    return all(len(pattern) == 1 and set(pattern[0]) == {"TAG"} for pattern in rule["patterns"])
