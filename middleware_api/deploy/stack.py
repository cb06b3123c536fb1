"""CloudFormation: bring a stack to a template, or take it away, and tell what happens meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import ClientError

_POLL_SECONDS = 3.0
_NO_CHANGES = ("didn't contain changes", "No updates are to be performed")

Say = Callable[[str], None]


class StackError(Exception):
    """CloudFormation refused or failed; the message holds its own reasons."""


@dataclass(frozen=True)
class Deployed:
    """A stack as it stands."""

    id: str
    status: str
    parameters: frozenset[str]
    outputs: Mapping[str, str]

    @property
    def stillborn(self) -> bool:
        """Whether its first deployment failed, so that it can only be deleted."""
        return self.status in ("ROLLBACK_COMPLETE", "ROLLBACK_FAILED")

    @property
    def empty(self) -> bool:
        """Whether there is only a change set that was never executed."""
        return self.status == "REVIEW_IN_PROGRESS"


class Stacks:
    """The stacks of one account and region."""

    def __init__(self, cloudformation: Any, say: Say, poll_seconds: float = _POLL_SECONDS) -> None:
        self._cloudformation = cloudformation
        self._say = say
        self._poll_seconds = poll_seconds

    def find(self, name: str) -> Deployed | None:
        """The stack of that name (or id), None when there is none."""
        try:
            stack = self._cloudformation.describe_stacks(StackName=name)["Stacks"][0]
        except ClientError as error:
            if "does not exist" in str(error):
                return None
            raise
        return Deployed(
            id=stack["StackId"],
            status=stack["StackStatus"],
            parameters=frozenset(p["ParameterKey"] for p in stack.get("Parameters", ())),
            outputs={o["OutputKey"]: o["OutputValue"] for o in stack.get("Outputs", ())},
        )

    def deploy(self, name: str, template_url: str, parameters: Mapping[str, str]) -> None:
        """Create or update, and wait. Parameters that are not named keep their values.

        Raises StackError with the resources' own reasons.
        """
        stack = self.find(name)
        if stack is not None and stack.stillborn:
            self.delete(name)
            stack = None
        if stack is not None and stack.empty:
            stack = None
        if stack is not None and stack.status.endswith("_IN_PROGRESS"):
            raise StackError(
                f"Stack '{name}' is busy ({stack.status}). Wait until that is done, then try again."
            )
        seen = set() if stack is None else {e["EventId"] for e in self._events(stack.id)}
        change_set = self._change_set(name, template_url, parameters, stack)
        if change_set is None:
            self._say("Nothing has changed in the stack.")
            return
        self._cloudformation.execute_change_set(ChangeSetName=change_set["ChangeSetId"])
        end = self._follow(change_set["StackId"], seen)
        if end not in ("CREATE_COMPLETE", "UPDATE_COMPLETE"):
            raise StackError(
                f"Stack '{name}' ended as {end}. The lines above tell which resource failed and "
                "why; correct that and deploy again."
            )

    def delete(self, name: str) -> None:
        """Delete and wait; no error when there is no such stack. Raises StackError."""
        stack = self.find(name)
        if stack is None:
            return
        seen = {e["EventId"] for e in self._events(stack.id)}
        self._cloudformation.delete_stack(StackName=stack.id)
        end = self._follow(stack.id, seen)
        if end != "DELETE_COMPLETE":
            raise StackError(
                f"Stack '{name}' ended as {end}. The lines above tell which resource could not be "
                "deleted and why; correct that and try again."
            )

    def _change_set(
        self, name: str, template_url: str, parameters: Mapping[str, str], stack: Deployed | None
    ) -> dict[str, Any] | None:
        """A change set that is ready; None when nothing would change."""
        given = [{"ParameterKey": k, "ParameterValue": v} for k, v in parameters.items()]
        known = self._cloudformation.get_template_summary(TemplateURL=template_url)["Parameters"]
        before = frozenset() if stack is None else stack.parameters
        kept = before & {p["ParameterKey"] for p in known} - parameters.keys()
        made = self._cloudformation.create_change_set(
            StackName=name,
            ChangeSetName=f"deploy-{time.time_ns()}",
            ChangeSetType="CREATE" if stack is None else "UPDATE",
            TemplateURL=template_url,
            Capabilities=["CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND"],
            Parameters=[*given, *({"ParameterKey": k, "UsePreviousValue": True} for k in kept)],
        )
        while True:
            change_set: dict[str, Any] = self._cloudformation.describe_change_set(
                ChangeSetName=made["Id"]
            )
            if change_set["Status"] == "CREATE_COMPLETE":
                return change_set
            if change_set["Status"] == "FAILED":
                break
            time.sleep(self._poll_seconds)
        reason = change_set.get("StatusReason", "")
        self._cloudformation.delete_change_set(ChangeSetName=made["Id"])
        if any(words in reason for words in _NO_CHANGES):
            return None
        raise StackError(f"CloudFormation refuses the template: {reason}")

    def _follow(self, stack_id: str, seen: set[str]) -> str:
        """Tell each new event until the stack rests; returns its state then."""
        while True:
            stack = self.find(stack_id)
            status = "DELETE_COMPLETE" if stack is None else stack.status
            for event in reversed(self._events(stack_id)):
                if event["EventId"] not in seen:
                    seen.add(event["EventId"])
                    self._say(_line(event))
            if not status.endswith("_IN_PROGRESS"):
                return status
            time.sleep(self._poll_seconds)

    def _events(self, stack_id: str) -> list[dict[str, Any]]:
        """The newest page, newest first: more than happens between two looks."""
        events: list[dict[str, Any]] = self._cloudformation.describe_stack_events(
            StackName=stack_id
        )["StackEvents"]
        return events


def _line(event: dict[str, Any]) -> str:
    reason = event.get("ResourceStatusReason", "")
    return (
        f"{event['Timestamp']:%H:%M:%S} {event['ResourceStatus']:<28} "
        f"{event['LogicalResourceId']} {reason}".rstrip()
    )
