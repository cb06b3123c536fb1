"""What `make deploy` does with the states that it can find a stack in."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import pytest
from botocore.exceptions import ClientError

from middleware_api.deploy.stack import StackError, Stacks

Json = dict[str, Any]
NAME = "sdaws"


class CloudFormation:
    """One stack: `ends` is the state in which the next change ends, each after one look."""

    def __init__(self, status: str | None, *ends: str, refusal: str = "") -> None:
        self.status = status
        self.ends = list(ends)
        self.refusal = refusal
        self.done: list[str] = []
        self.events: list[Json] = []
        self.given: list[Json] = []

    def describe_stacks(self, StackName: str) -> Json:
        status = self.status
        if status is None:
            message = f"Stack with id {StackName} does not exist"
            raise ClientError({"Error": {"Code": "ValidationError", "Message": message}}, "x")
        if status.endswith("_IN_PROGRESS") and self.done:
            self._tell(self.ends[0])
            self.status = self.ends.pop(0)
        parameters = [{"ParameterKey": "LogDays"}, {"ParameterKey": "Gone"}]
        return {"Stacks": [{"StackId": "id", "StackStatus": status, "Parameters": parameters}]}

    def describe_stack_events(self, StackName: str) -> Json:
        return {"StackEvents": list(reversed(self.events))}

    def get_template_summary(self, TemplateURL: str) -> Json:
        return {"Parameters": [{"ParameterKey": "LogDays"}, {"ParameterKey": "CodeKey"}]}

    def create_change_set(self, **request: Any) -> Json:
        self.done.append(request["ChangeSetType"])
        self.given = request["Parameters"]
        return {"Id": "change", "StackId": "id"}

    def describe_change_set(self, ChangeSetName: str) -> Json:
        status = "FAILED" if self.refusal else "CREATE_COMPLETE"
        return {
            "Status": status,
            "StatusReason": self.refusal,
            "ChangeSetId": "change",
            "StackId": "id",
        }

    def delete_change_set(self, ChangeSetName: str) -> None:
        self.done.append("forget")

    def execute_change_set(self, ChangeSetName: str) -> None:
        self.status = f"{self.done[-1]}_IN_PROGRESS"

    def delete_stack(self, StackName: str) -> None:
        self.done.append("DELETE")
        self.status = "DELETE_IN_PROGRESS"

    def _tell(self, status: str) -> None:
        self.events.append(
            {
                "EventId": str(len(self.events)),
                "Timestamp": datetime(2026, 1, 1, tzinfo=timezone.utc),
                "ResourceStatus": status,
                "LogicalResourceId": "Bucket",
                "ResourceStatusReason": "its own reason",
            }
        )


def deploy(cloudformation: CloudFormation) -> list[str]:
    said: list[str] = []
    Stacks(cloudformation, said.append, poll_seconds=0).deploy(NAME, "url", {"CodeKey": "new"})
    return said


@pytest.mark.parametrize("status", [None, "REVIEW_IN_PROGRESS"])
def test_a_new_stack_is_created(status: str | None) -> None:
    cloudformation = CloudFormation(status, "CREATE_COMPLETE")
    said = deploy(cloudformation)
    assert cloudformation.done == ["CREATE"]
    assert cloudformation.given == [{"ParameterKey": "CodeKey", "ParameterValue": "new"}]
    assert any("CREATE_COMPLETE" in line and "its own reason" in line for line in said)


def test_an_update_keeps_the_parameters_that_the_template_still_has() -> None:
    cloudformation = CloudFormation("CREATE_COMPLETE", "UPDATE_COMPLETE")
    deploy(cloudformation)
    assert cloudformation.done == ["UPDATE"]
    assert {"ParameterKey": "LogDays", "UsePreviousValue": True} in cloudformation.given
    assert "Gone" not in str(cloudformation.given)


def test_a_stack_whose_creation_failed_is_made_anew() -> None:
    cloudformation = CloudFormation("ROLLBACK_COMPLETE", "DELETE_COMPLETE", "CREATE_COMPLETE")
    deploy(cloudformation)
    assert cloudformation.done == ["DELETE", "CREATE"]


def test_a_busy_stack_is_left_alone() -> None:
    cloudformation = CloudFormation("UPDATE_IN_PROGRESS")
    with pytest.raises(StackError, match="busy"):
        deploy(cloudformation)
    assert cloudformation.done == []


def test_an_update_that_is_rolled_back_is_a_failure() -> None:
    cloudformation = CloudFormation("CREATE_COMPLETE", "UPDATE_ROLLBACK_COMPLETE")
    with pytest.raises(StackError, match="UPDATE_ROLLBACK_COMPLETE"):
        deploy(cloudformation)


def test_no_change_is_told_and_a_refusal_raised() -> None:
    unchanged = "The submitted information didn't contain changes."
    assert deploy(CloudFormation("CREATE_COMPLETE", refusal=unchanged)) == [
        "Nothing has changed in the stack."
    ]
    with pytest.raises(StackError, match="no such type"):
        deploy(CloudFormation("CREATE_COMPLETE", refusal="no such type"))


def test_a_stack_that_cannot_be_deleted_is_a_failure() -> None:
    with pytest.raises(StackError, match="DELETE_FAILED"):
        Stacks(CloudFormation("CREATE_COMPLETE", "DELETE_FAILED"), print, 0).delete(NAME)
    Stacks(CloudFormation(None), print, 0).delete(NAME)
