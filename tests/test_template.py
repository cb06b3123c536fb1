"""The template says what the code says: routes, table, settings; and its roles are narrow.

That it deploys and answers is told under tests/deploy.
"""

from __future__ import annotations

import zipfile
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import pytest

import middleware_api.aws
import middleware_api.container.s3_storage
import middleware_api.container.weights.ranged_download
from middleware_api.api.reference import service_description
from middleware_api.aws.events import ENDPOINT_CHANGE, TRAINING_CHANGE
from middleware_api.aws.settings import AwsSettings, read_aws_settings
from middleware_api.aws.table import EXPIRES, schema
from middleware_api.contract import (
    CheckpointType,
    checkpoint_key,
    conversion_id,
    merged_checkpoint_id,
    model_output_prefix,
    train_prefix,
)
from middleware_api.deploy import package
from middleware_api.deploy.routes import routes, with_routes
from tests.aws_calls import actions, called_operations
from tests.cloudformation import (
    TEMPLATE,
    Json,
    actions_of,
    as_list,
    load_template,
    of_type,
    policies,
    statements_of,
)

# AWS has these act on no resource that could be named.
WITHOUT_RESOURCE = {"ecr:GetAuthorizationToken", "cloudwatch:GetMetricData"}
FUNCTION_ROLES = ("ApiRole", "EventRole")
ADAPTERS = sorted(Path(middleware_api.aws.__file__).parent.glob("*.py"))
# What the adapters call, by boto3's names.
SERVICES = (
    "application-autoscaling",
    "cloudwatch",
    "dynamodb",
    "s3",
    "sagemaker",
    "sagemaker-runtime",
    "secretsmanager",
    "sqs",
)
# What Lambda does with a function's role by itself.
LAMBDAS_OWN = {
    "logs:CreateLogStream",
    "logs:PutLogEvents",
    "sqs:DeleteMessage",
    "sqs:GetQueueAttributes",
    "sqs:ReceiveMessage",
}


# Where merged and converted checkpoints lie; nothing that users upload does.
MERGED = checkpoint_key(CheckpointType.STABLE_DIFFUSION, merged_checkpoint_id("*"), "*")
CONVERTED = checkpoint_key(CheckpointType.LORA, conversion_id("*"), "*").replace("Lora", "*")
# What training and the making of models write.
TRAINED = (
    f"{model_output_prefix(CheckpointType.LORA, '*', '*')}*".replace("Lora", "*"),
    f"{train_prefix(CheckpointType.LORA, '*', '*')}output/*".replace("Lora", "*"),
)


@pytest.fixture(scope="module")
def template() -> Json:
    return load_template()


@pytest.fixture(scope="module")
def description() -> Json:
    return service_description()


def test_every_route_of_the_service_is_a_route_of_the_gateway(
    template: Json, description: Json
) -> None:
    paths = template["Resources"]["Api"]["Properties"]["DefinitionBody"]["paths"]
    written = {path: sorted(set(methods) - {"parameters"}) for path, methods in paths.items()}
    assert written == routes(description), "run `make docs`"


def test_the_routes_are_written_as_the_generator_would(description: Json) -> None:
    assert TEMPLATE.read_text() == with_routes(TEMPLATE.read_text(), description), "run `make docs`"


def test_the_gateway_may_call_the_function_on_every_route(template: Json) -> None:
    permission = of_type(template, "AWS::Lambda::Permission")["ApiPermission"]
    assert permission["SourceArn"]["Fn::Sub"].endswith(":${Api}/prod/*")


def test_no_role_may_do_everything(template: Json) -> None:
    for holder, statements in policies(template).items():
        for statement in statements:
            assert statement["Effect"] == "Allow"
            for action in as_list(statement["Action"]):
                assert "*" not in action, (holder, action)
            if "*" in as_list(statement["Resource"]):
                assert set(as_list(statement["Action"])) <= WITHOUT_RESOURCE, (holder, statement)


def test_functions_hand_on_only_the_containers_role_and_only_to_sagemaker(template: Json) -> None:
    for role in FUNCTION_ROLES:
        passing = [
            s for s in statements_of(template, role) if "iam:PassRole" in as_list(s["Action"])
        ]
        assert [s["Resource"] for s in passing] == [{"Fn::GetAtt": ["EndpointRole", "Arn"]}]
        assert passing[0]["Condition"] == {
            "StringEquals": {"iam:PassedToService": "sagemaker.amazonaws.com"}
        }


def test_the_functions_may_do_what_their_code_calls_and_nothing_else(template: Json) -> None:
    needed = actions(called_operations(ADAPTERS, SERVICES))
    allowed = set().union(*(actions_of(template, role) for role in FUNCTION_ROLES))
    assert allowed - LAMBDAS_OWN == needed | {"iam:PassRole"}


def test_the_event_function_may_hand_work_on_to_itself(template: Json) -> None:
    assert "sqs:SendMessage" in actions_of(template, "EventRole")


def test_the_table_is_the_one_that_the_adapter_reads(template: Json) -> None:
    table = of_type(template, "AWS::DynamoDB::Table")["Table"]
    assert {name: table[name] for name in schema()} == schema()
    assert table["TimeToLiveSpecification"] == {"AttributeName": EXPIRES, "Enabled": True}


def test_the_functions_are_told_all_that_they_ask_for(template: Json) -> None:
    function = template["Globals"]["Function"]
    names = function["Environment"]["Variables"]
    assert read_aws_settings(dict.fromkeys(names, "given"))
    asked = {f"SDAWS_{field.name.upper()}" for field in fields(AwsSettings)}
    assert set(names) <= asked


def test_the_handlers_are_there(template: Json) -> None:
    for function in of_type(template, "AWS::Serverless::Function").values():
        module, _, name = function["Handler"].rpartition(".")
        assert callable(getattr(import_module(module), name))


def test_the_container_makes_no_resources_and_writes_only_what_it_makes(template: Json) -> None:
    services = {action.split(":")[0] for action in actions_of(template, "EndpointRole")}
    assert services == {"s3", "sns", "ecr", "logs"}
    writable = [
        resource["Fn::Sub"]
        for statement in statements_of(template, "EndpointRole")
        if "s3:PutObject" in as_list(statement["Action"])
        for resource in as_list(statement["Resource"])
    ]
    assert writable == [
        *(f"${{Bucket.Arn}}/{key}" for key in TRAINED),
        "${Bucket.Arn}/out/*",
        "${Bucket.Arn}/sagemaker_output/*",
        f"${{Bucket.Arn}}/{MERGED}",
        f"${{Bucket.Arn}}/{CONVERTED}",
    ]


def test_the_container_gives_up_no_upload_but_its_own(template: Json) -> None:
    abortable = [
        resource
        for statement in statements_of(template, "EndpointRole")
        if "s3:AbortMultipartUpload" in as_list(statement["Action"])
        for resource in statement["Resource"]
    ]
    assert abortable == [
        {"Fn::Sub": f"${{Bucket.Arn}}/{key}"} for key in (*TRAINED, MERGED, CONVERTED)
    ]


def test_the_container_may_read_and_write_what_its_code_does(template: Json) -> None:
    storage = Path(middleware_api.container.s3_storage.__file__)
    download = Path(middleware_api.container.weights.ranged_download.__file__)
    needed = actions(called_operations([storage, download], ["s3"]))
    allowed = {a for a in actions_of(template, "EndpointRole") if a.startswith("s3:")}
    assert allowed == needed


def test_an_event_is_not_handed_out_again_while_the_function_may_be_at_it(template: Json) -> None:
    queue = template["Resources"]["EventsQueue"]["Properties"]
    function = template["Resources"]["EventFunction"]["Properties"]
    assert queue["VisibilityTimeout"] >= 6 * function["Timeout"]
    assert function["Events"]["Queue"]["Properties"]["FunctionResponseTypes"] == [
        "ReportBatchItemFailures"
    ]
    assert queue["RedrivePolicy"]["deadLetterTargetArn"] == {"Fn::GetAtt": ["DeadLetters", "Arn"]}


def test_the_rules_pass_on_what_the_function_understands(template: Json) -> None:
    rules = of_type(template, "AWS::Events::Rule")
    patterns = {
        rule["EventPattern"]["detail-type"][0]: rule["EventPattern"] for rule in rules.values()
    }
    assert set(patterns) == {ENDPOINT_CHANGE, TRAINING_CHANGE}
    ours = [{"prefix": {"Fn::Sub": "${AWS::StackName}-"}}]
    assert patterns[ENDPOINT_CHANGE]["detail"] == {"EndpointName": ours}
    assert patterns[TRAINING_CHANGE]["detail"] == {"TrainingJobName": ours}
    assert all(pattern["source"] == ["aws.sagemaker"] for pattern in patterns.values())


def test_every_log_is_deleted_some_day(template: Json) -> None:
    groups = of_type(template, "AWS::Logs::LogGroup")
    assert all(group["RetentionInDays"] == {"Ref": "LogDays"} for group in groups.values())
    for function in of_type(template, "AWS::Serverless::Function").values():
        assert function["LoggingConfig"]["LogGroup"]["Ref"] in groups


def test_the_access_log_holds_no_secret(template: Json) -> None:
    line = template["Resources"]["Api"]["Properties"]["AccessLogSetting"]["Format"]
    for word in ("header", "queryString", "body", "$context.path", "apiKey", "authorizer"):
        assert word not in line


def test_the_bucket_outlives_the_stack_and_is_nobody_elses(template: Json) -> None:
    bucket = template["Resources"]["Bucket"]
    assert bucket["DeletionPolicy"].startswith("Retain")
    assert bucket["UpdateReplacePolicy"] == "Retain"
    assert set(bucket["Properties"]["PublicAccessBlockConfiguration"].values()) == {True}
    rules = {rule["Id"]: rule for rule in bucket["Properties"]["LifecycleConfiguration"]["Rules"]}
    assert rules["stale-uploads"]["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 2}
    assert rules["sagemaker-answers"]["Prefix"] == "sagemaker_output/"
    assert "VersioningConfiguration" not in bucket["Properties"]


def test_the_package_is_made_for_the_functions_runtime(template: Json) -> None:
    function = template["Globals"]["Function"]
    assert function["Runtime"] == "python" + ".".join(map(str, package.LAMBDA_PYTHON))
    assert function["Architectures"] == [package.LAMBDA_PLATFORM.partition("_")[2]]


def test_the_images_sources_are_what_its_build_asks_for(tmp_path: Path, template: Json) -> None:
    names = zipfile.ZipFile(package.build_image_sources(tmp_path).path).namelist()
    assert "middleware_api/container/Dockerfile" in names
    build = of_type(template, "AWS::CodeBuild::Project")["ImageBuild"]
    assert build["Source"]["BuildSpec"] in names
