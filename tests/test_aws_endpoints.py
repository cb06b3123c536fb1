"""SageMaker's endpoints: on moto, and by Stubber where moto answers what SageMaker does not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
from botocore.exceptions import ConnectTimeoutError
from botocore.stub import Stubber

from middleware_api import contract
from middleware_api.aws.clients import Clients
from middleware_api.aws.endpoints import SageMakerEndpoints
from middleware_api.aws.objects import S3Objects
from middleware_api.aws.records import DynamoRecords
from middleware_api.aws.settings import AwsSettings
from middleware_api.contract import EndpointState, Invocation
from middleware_api.errors import Conflict, Unavailable
from middleware_api.records import Endpoint
from tests.aws import BUCKET, REGION, TABLE, Aws, aws

ROLE = "arn:aws:iam::111122223333:role/endpoint"
TOPIC = "arn:aws:sns:eu-central-1:111122223333"
SETTINGS = AwsSettings(
    table=TABLE,
    bucket=BUCKET,
    prefix="sdaws",
    admin_token_secret="token",
    endpoint_role=ROLE,
    image="111122223333.dkr.ecr.eu-central-1.amazonaws.com/inference:1",
    result_topic=f"{TOPIC}:results",
    error_topic=f"{TOPIC}:errors",
    events_queue_url="https://sqs.eu-central-1.amazonaws.com/111122223333/events",
)
# moto's list of instance types is older than the g5.
ENDPOINT = Endpoint(
    id="0d5e6f", owner="me", created_at=1.0, name="portraits", instance_type="ml.p3.2xlarge",
    initial_instance_count=1, autoscaling_enabled=True, min_instance_count=0, max_instance_count=3,
)  # fmt: skip
NAME = "sdaws-0d5e6f"
JOB = Invocation(
    job_id="job-1",
    task_type="txt2img",
    params_key="txt2img/infer_v2/job-1/api_param.json",
    checkpoints=[],
    output_prefix="out/job-1/",
)


@dataclass
class Cloud:
    """The adapter, and the account that it works in."""

    account: Aws
    clients: Clients
    endpoints: SageMakerEndpoints
    objects: S3Objects


@pytest.fixture
def cloud() -> Iterator[Cloud]:
    with aws() as account:
        clients = Clients(account.session)
        records = DynamoRecords(clients.dynamodb, TABLE, lambda: 1000.0)
        objects = S3Objects(clients.s3, BUCKET)
        endpoints = SageMakerEndpoints(clients, SETTINGS, records, objects, lambda: 1000.0)
        yield Cloud(account, clients, endpoints, objects)


def test_an_endpoint_is_created_asynchronous_with_one_configuration_of_its_own(
    cloud: Cloud,
) -> None:
    cloud.endpoints.create(ENDPOINT)
    config = cloud.clients.sagemaker.describe_endpoint_config(EndpointConfigName=NAME)
    (variant,) = config["ProductionVariants"]
    assert variant["InstanceType"] == "ml.p3.2xlarge"
    output = config["AsyncInferenceConfig"]["OutputConfig"]
    assert output["NotificationConfig"] == {
        "SuccessTopic": SETTINGS.result_topic,
        "ErrorTopic": SETTINGS.error_topic,
    }
    assert output["S3OutputPath"] == f"s3://{BUCKET}/sagemaker_output/"
    model = cloud.clients.sagemaker.describe_model(ModelName=NAME)
    assert model["PrimaryContainer"]["Image"] == SETTINGS.image
    assert model["PrimaryContainer"]["Environment"] == {"SDAWS_BUCKET": BUCKET}
    # A run that was cut short is begun again.
    cloud.endpoints.create(ENDPOINT)
    status = cloud.endpoints.statuses([ENDPOINT])[ENDPOINT.id]
    assert (status.state, status.instance_count) == (EndpointState.IN_SERVICE, 1)


@pytest.mark.parametrize(
    ("instance_type", "chosen"),
    [("ml.g5.xlarge", True), ("ml.p4d.24xlarge", True), ("ml.m5.large", False)],
)
def test_a_machine_image_is_chosen_for_gpus_alone(
    cloud: Cloud, instance_type: str, chosen: bool
) -> None:
    with Stubber(cloud.clients.sagemaker) as stub:
        stub.add_response("create_model", {"ModelArn": "arn:aws:sagemaker:x:1:model/m" + "x" * 20})
        stub.add_client_error("create_endpoint_config", "ThrottlingException")
        with pytest.raises(Exception, match="Throttling"):
            cloud.endpoints.create(replace(ENDPOINT, instance_type=instance_type))
    _, asked = next(c for c in cloud.account.calls if c[0] == "CreateEndpointConfig")
    assert ("InferenceAmiVersion" in asked["ProductionVariants"][0]) == chosen


def test_it_scales_from_nothing_by_policies_and_an_alarm_of_its_own(cloud: Cloud) -> None:
    cloud.endpoints.create(ENDPOINT)
    for _ in range(2):
        cloud.endpoints.entered_service(ENDPOINT)
    (target,) = cloud.clients.autoscaling.describe_scalable_targets(ServiceNamespace="sagemaker")[
        "ScalableTargets"
    ]
    assert target["ResourceId"] == f"endpoint/{NAME}/variant/gpu"
    assert (target["MinCapacity"], target["MaxCapacity"]) == (0, 3)
    policies = cloud.clients.autoscaling.describe_scaling_policies(ServiceNamespace="sagemaker")
    waking = {p["PolicyName"]: p for p in policies["ScalingPolicies"]}[f"{NAME}-wake"]
    assert {p["PolicyType"] for p in policies["ScalingPolicies"]} == {
        "TargetTrackingScaling",
        "StepScaling",
    }
    (alarm,) = cloud.clients.cloudwatch.describe_alarms(AlarmNamePrefix=f"{NAME}-wake")[
        "MetricAlarms"
    ]
    assert alarm["MetricName"] == "HasBacklogWithoutCapacity"
    assert alarm["Dimensions"] == [{"Name": "EndpointName", "Value": NAME}]
    assert alarm["AlarmActions"] == [waking["PolicyARN"]]


def test_an_endpoint_that_does_not_scale_has_nothing_to_scale_it(cloud: Cloud) -> None:
    with cloud.account.counted() as calls:
        cloud.endpoints.entered_service(replace(ENDPOINT, autoscaling_enabled=False))
    assert calls == []


def test_deleting_takes_all_of_it_away_and_again_is_no_error(cloud: Cloud) -> None:
    cloud.endpoints.create(ENDPOINT)
    cloud.endpoints.entered_service(ENDPOINT)
    for _ in range(2):
        cloud.endpoints.delete(ENDPOINT)
        cloud.endpoints.left_service(ENDPOINT)
    sagemaker = cloud.clients.sagemaker
    assert sagemaker.list_endpoints()["Endpoints"] == []
    assert sagemaker.list_endpoint_configs()["EndpointConfigs"] == []
    assert sagemaker.list_models()["Models"] == []
    targets = cloud.clients.autoscaling.describe_scalable_targets(ServiceNamespace="sagemaker")
    assert targets["ScalableTargets"] == []
    assert cloud.clients.cloudwatch.describe_alarms(AlarmNamePrefix=NAME)["MetricAlarms"] == []
    assert cloud.endpoints.statuses([ENDPOINT])[ENDPOINT.id].state is EndpointState.DELETED


def test_a_quota_that_is_used_up_is_told_with_what_to_do_and_leaves_nothing(cloud: Cloud) -> None:
    with Stubber(cloud.clients.sagemaker) as stub:
        stub.add_response("create_model", {"ModelArn": "arn:aws:sagemaker:x:1:model/m" + "x" * 20})
        stub.add_response(
            "create_endpoint_config",
            {"EndpointConfigArn": "arn:aws:sagemaker:x:1:endpoint-config/" + "x" * 20},
        )
        stub.add_client_error(
            "create_endpoint", "ResourceLimitExceeded", "The account-level limit is 0 Instances."
        )
        stub.add_response("delete_endpoint_config", {}, {"EndpointConfigName": NAME})
        stub.add_response("delete_model", {}, {"ModelName": NAME})
        with pytest.raises(Conflict, match=r"limit is 0 Instances\..*Service Quotas"):
            cloud.endpoints.create(ENDPOINT)
        stub.assert_no_pending_responses()


def test_one_in_passing_that_refuses_to_be_deleted_is_left_to_the_reconciler(cloud: Cloud) -> None:
    fixed = replace(ENDPOINT, autoscaling_enabled=False)
    with Stubber(cloud.clients.sagemaker) as stub:
        stub.add_client_error(
            "delete_endpoint", "ValidationException", "Cannot update in-progress endpoint"
        )
        cloud.endpoints.delete(fixed)
        stub.add_client_error("delete_endpoint", "AccessDeniedException", "no")
        with pytest.raises(Exception, match="AccessDenied"):
            cloud.endpoints.delete(fixed)


@pytest.mark.parametrize(
    ("word", "state"),
    [
        ("Creating", EndpointState.CREATING),
        ("SystemUpdating", EndpointState.UPDATING),
        ("RollingBack", EndpointState.UPDATING),
        ("OutOfService", EndpointState.FAILED),
        ("Failed", EndpointState.FAILED),
        ("Deleting", EndpointState.DELETING),
    ],
)
def test_sagemakers_words(cloud: Cloud, word: str, state: EndpointState) -> None:
    answer = {
        "EndpointName": NAME,
        "EndpointArn": "arn:aws:sagemaker:eu-central-1:111122223333:endpoint/x",
        "EndpointStatus": word,
        "FailureReason": "no capacity",
        "CreationTime": 1,
        "LastModifiedTime": 1,
    }
    with Stubber(cloud.clients.sagemaker) as stub:
        stub.add_response("describe_endpoint", answer, {"EndpointName": NAME})
        status = cloud.endpoints.statuses([ENDPOINT])[ENDPOINT.id]
    assert (status.state, status.error) == (state, "no capacity")


def test_backlogs_of_several_are_asked_in_one_call(cloud: Cloud) -> None:
    second = replace(ENDPOINT, id="ffff")
    for endpoint in (ENDPOINT, second):
        cloud.endpoints.create(endpoint)
    answer = {"MetricDataResults": [{"Id": "e0", "Values": [7.0, 3.0]}, {"Id": "e1", "Values": []}]}
    with Stubber(cloud.clients.cloudwatch) as stub:
        stub.add_response("get_metric_data", answer)
        statuses = cloud.endpoints.statuses([ENDPOINT, second])
    assert [statuses[e.id].load for e in (ENDPOINT, second)] == [7, 0]


def test_a_job_is_queued_once_with_all_that_the_container_needs(cloud: Cloud) -> None:
    accepted = {"OutputLocation": f"s3://{BUCKET}/sagemaker_output/x.out"}
    with Stubber(cloud.clients.sagemaker_runtime) as stub:
        stub.add_response(
            "invoke_endpoint_async",
            accepted,
            {
                "EndpointName": NAME,
                "ContentType": "application/json",
                "Accept": "application/json",
                "InferenceId": "job-1",
                "InputLocation": f"s3://{BUCKET}/out/job-1/invocation.json",
                "RequestTTLSeconds": 21600,
                "InvocationTimeoutSeconds": 3600,
            },
        )
        assert not cloud.endpoints.accepted("job-1")
        cloud.endpoints.invoke(ENDPOINT.id, JOB)
        cloud.endpoints.invoke(ENDPOINT.id, JOB)
        stub.assert_no_pending_responses()
    assert cloud.endpoints.accepted("job-1")
    assert json.loads(cloud.objects.read(contract.invocation_key("job-1"))) == JOB


def test_a_job_can_be_withdrawn_until_the_container_has_begun_it(cloud: Cloud) -> None:
    assert cloud.endpoints.withdraw("job-1")
    cloud.objects.write(contract.progress_key("job-1"), b"{}")
    assert not cloud.endpoints.withdraw("job-1")
    assert cloud.endpoints.queue_position("job-1") is None


def test_what_aws_says_to_a_job_becomes_our_words(cloud: Cloud) -> None:
    runtime = cloud.clients.sagemaker_runtime
    with Stubber(runtime) as stub:
        stub.add_client_error("invoke_endpoint_async", "ValidationError", "Endpoint not found")
        with pytest.raises(Conflict, match="AWS does not take this job: Endpoint not found"):
            cloud.endpoints.invoke(ENDPOINT.id, JOB)
        stub.add_client_error("invoke_endpoint_async", "ThrottlingException", http_status_code=400)
        with pytest.raises(Unavailable, match="too busy"):
            cloud.endpoints.invoke(ENDPOINT.id, JOB)
    runtime.meta.events.register_first("before-send.*.*", _time_out)
    with pytest.raises(Unavailable, match="could not be reached"):
        cloud.endpoints.invoke(ENDPOINT.id, JOB)
    assert not cloud.endpoints.accepted("job-1")


def _time_out(**_: object) -> None:
    raise ConnectTimeoutError(endpoint_url=f"https://runtime.sagemaker.{REGION}.amazonaws.com")
