"""Which AWS operations some source code calls, and which IAM actions those need."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterable
from functools import cache
from pathlib import Path

import botocore.session
from botocore import xform_name

# Operations whose action has another name than they have, or that need several.
_OTHER_ACTIONS: dict[tuple[str, str], tuple[str, ...]] = {
    ("application-autoscaling", "register_scalable_target"): (
        "application-autoscaling:RegisterScalableTarget",
        # The first target of an account makes the role by which SageMaker is scaled.
        "iam:CreateServiceLinkedRole",
        # SageMaker's guide asks them of whoever registers an endpoint.
        "sagemaker:DescribeEndpoint",
        "sagemaker:DescribeEndpointConfig",
        "sagemaker:UpdateEndpointWeightsAndCapacities",
    ),
    ("application-autoscaling", "put_scaling_policy"): (
        "application-autoscaling:PutScalingPolicy",
        "cloudwatch:DeleteAlarms",
        "cloudwatch:DescribeAlarms",
        "cloudwatch:PutMetricAlarm",
    ),
    ("dynamodb", "transact_write_items"): (
        "dynamodb:ConditionCheckItem",
        "dynamodb:DeleteItem",
        "dynamodb:PutItem",
        "dynamodb:UpdateItem",
    ),
    ("dynamodb", "transact_get_items"): ("dynamodb:GetItem",),
    ("s3", "complete_multipart_upload"): ("s3:PutObject",),
    ("s3", "copy_object"): ("s3:GetObject", "s3:PutObject"),
    ("s3", "create_multipart_upload"): ("s3:PutObject",),
    ("s3", "delete_objects"): ("s3:DeleteObject",),
    ("s3", "download_file"): ("s3:GetObject",),
    ("s3", "download_fileobj"): ("s3:GetObject",),
    # Without ListBucket an object that is not there answers 403.
    ("s3", "get_object"): ("s3:GetObject", "s3:ListBucket"),
    ("s3", "head_object"): ("s3:GetObject", "s3:ListBucket"),
    ("s3", "list_objects_v2"): ("s3:ListBucket",),
    ("s3", "list_parts"): ("s3:ListMultipartUploadParts",),
    ("s3", "upload_file"): ("s3:PutObject",),
    ("s3", "upload_fileobj"): ("s3:PutObject",),
    ("s3", "upload_part"): ("s3:PutObject",),
    ("s3", "upload_part_copy"): ("s3:GetObject", "s3:PutObject"),
    ("sagemaker", "create_model"): ("sagemaker:CreateModel", "iam:PassRole"),
    ("sagemaker", "create_training_job"): ("sagemaker:CreateTrainingJob", "iam:PassRole"),
}
# Not in S3's own model: boto3 makes them of several operations.
_TRANSFERS = frozenset({"download_file", "download_fileobj", "upload_file", "upload_fileobj"})
_IAM_NAMES = {"sagemaker-runtime": "sagemaker"}


def called_operations(files: Iterable[Path], services: Collection[str]) -> set[tuple[str, str]]:
    """(service, operation) of every word in the code that names an operation of `services`.

    Words in strings count too (`generate_presigned_url("put_object")`, paginators). A word that
    is an operation of two services counts for both.
    """
    words = {word for file in files for word in _words(ast.parse(file.read_text()))}
    return {
        (service, operation)
        for service in services
        for operation in operations(service)
        if operation in words
    }


@cache
def operations(service: str) -> frozenset[str]:
    """What a client of the service can be asked, by boto3's names."""
    model = botocore.session.get_session().get_service_model(service)
    names = {xform_name(name) for name in model.operation_names}
    return frozenset(names | (_TRANSFERS if service == "s3" else set()))


def actions(called: Iterable[tuple[str, str]]) -> set[str]:
    """The IAM actions that these operations need."""
    needed: set[str] = set()
    for call in called:
        needed.update(_OTHER_ACTIONS.get(call) or (_action(*call),))
    return needed


def _action(service: str, operation: str) -> str:
    model = botocore.session.get_session().get_service_model(service)
    name = next(n for n in model.operation_names if xform_name(n) == operation)
    return f"{_IAM_NAMES.get(service, service)}:{name}"


def _words(tree: ast.AST) -> Iterable[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
