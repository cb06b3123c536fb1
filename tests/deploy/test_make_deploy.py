"""`make deploy` and `make undeploy`, from an empty account and back to it."""

from __future__ import annotations

import pytest

from tests.deploy.conftest import Deployment, outputs
from tests.deploy.emulator import ACCOUNT, REGION, Emulator

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(300)]

STAGING = f"sdaws-deploy-{ACCOUNT}-{REGION}"


def buckets(aws: Emulator) -> set[str]:
    return {bucket["Name"] for bucket in aws.client("s3").list_buckets()["Buckets"]}


def test_it_tells_where_the_api_is_and_where_its_token(deployment: Deployment) -> None:
    for output in ("ApiUrl", "AdminTokenCommand", "Bucket"):
        assert deployment.outputs[output] in deployment.said
    assert deployment.token not in deployment.said
    assert "CREATE_COMPLETE" in deployment.said


def test_it_begins_to_build_the_image_from_the_uploaded_sources(deployment: Deployment) -> None:
    codebuild = deployment.aws.client("codebuild")
    project = codebuild.batch_get_projects(names=[deployment.outputs["BuildProject"]])
    source = project["projects"][0]["source"]["location"]
    bucket, _, key = source.partition("/")
    assert deployment.aws.client("s3").head_object(Bucket=bucket, Key=key)["ContentLength"]
    assert (
        len(
            codebuild.list_builds_for_project(projectName=deployment.outputs["BuildProject"])["ids"]
        )
        == 1
    )


def test_again_without_a_change_changes_nothing(deployment: Deployment) -> None:
    done = deployment.aws.run("deploy")
    assert done.returncode == 0, done.stderr
    assert "Nothing has changed" in done.stdout
    assert "Uploading" not in done.stdout


def test_a_setting_is_kept_by_later_updates(deployment: Deployment) -> None:
    aws = deployment.aws
    assert aws.run("deploy", "--set", "ThrottleRate=7").returncode == 0
    assert aws.run("deploy", "--set", "LogDays=7").returncode == 0
    stack = aws.client("cloudformation").describe_stacks(StackName="sdaws")["Stacks"][0]
    values = {p["ParameterKey"]: p["ParameterValue"] for p in stack["Parameters"]}
    assert (values["ThrottleRate"], values["LogDays"]) == ("7", "7")
    api_id = deployment.outputs["ApiUrl"].removeprefix("https://").partition(".")[0]
    stage = aws.client("apigateway").get_stage(restApiId=api_id, stageName="prod")
    assert stage["methodSettings"]["*/*"]["throttlingRateLimit"] == 7


def test_a_template_that_fails_is_told_with_the_resources_own_reason(aws: Emulator) -> None:
    done = aws.run("deploy", "--name", "broken", "--set", "LogDays=8")
    assert done.returncode == 1
    assert "LogDays" in done.stderr
    assert "Traceback" not in done.stderr
    assert aws.run("undeploy", "--name", "broken").returncode == 0


def test_undeploy_keeps_the_users_bucket_unless_told(aws: Emulator) -> None:
    before = buckets(aws)
    assert aws.run("deploy", "--name", "passing").returncode == 0
    bucket = outputs(aws, "passing")["Bucket"]
    aws.client("s3").put_object(Bucket=bucket, Key="out/1/result/image_0.png", Body=b"picture")
    gone = aws.run("undeploy", "--name", "passing")
    assert gone.returncode == 0, gone.stderr
    assert bucket in gone.stdout
    assert buckets(aws) == before | {bucket}

    assert aws.run("deploy", "--name", "passing").returncode == 0
    second = outputs(aws, "passing")["Bucket"]
    aws.client("s3").put_object(Bucket=second, Key="out/1/result/image_0.png", Body=b"picture")
    assert aws.run("undeploy", "--name", "passing", "--delete-bucket").returncode == 0
    assert buckets(aws) == before | {bucket}
    assert aws.run("undeploy", "--name", "passing").returncode == 0


def test_undeploy_ends_what_costs_money_and_nobody_elses(aws: Emulator) -> None:
    sagemaker, scaling = aws.client("sagemaker"), aws.client("application-autoscaling")
    for name in ("passing-1", "passing2-1"):
        sagemaker.create_model(ModelName=name, ExecutionRoleArn="arn:aws:iam::1:role/r")
        sagemaker.create_endpoint_config(
            EndpointConfigName=name,
            ProductionVariants=[
                {
                    "VariantName": "all",
                    "ModelName": name,
                    "InstanceType": "ml.g4dn.xlarge",
                    "InitialInstanceCount": 1,
                }
            ],
        )
        sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)
        scaling.register_scalable_target(
            ServiceNamespace="sagemaker",
            ResourceId=f"endpoint/{name}/variant/all",
            ScalableDimension="sagemaker:variant:DesiredInstanceCount",
            MinCapacity=0,
            MaxCapacity=1,
        )
    assert aws.run("deploy", "--name", "passing").returncode == 0
    done = aws.run("undeploy", "--name", "passing", "--delete-bucket")
    assert done.returncode == 0, done.stderr
    assert "Deleting endpoint passing-1" in done.stdout
    endpoints = {e["EndpointName"] for e in sagemaker.list_endpoints()["Endpoints"]}
    models = {m["ModelName"] for m in sagemaker.list_models()["Models"]}
    targets = {
        target["ResourceId"]
        for target in scaling.describe_scalable_targets(ServiceNamespace="sagemaker")[
            "ScalableTargets"
        ]
    }
    assert ("passing-1" in endpoints, "passing2-1" in endpoints) == (False, True)
    assert ("passing-1" in models, "passing2-1" in models) == (False, True)
    assert "endpoint/passing-1/variant/all" not in targets
    assert "endpoint/passing2-1/variant/all" in targets
