"""One deployment in one AWS account and region: put it there, and take it away again."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from middleware_api.deploy.package import (
    TEMPLATE,
    Package,
    build_image_sources,
    build_lambda_package,
)
from middleware_api.deploy.stack import Say, Stacks
from middleware_api.deploy.sweep import Sweeper

# Without a hyphen: 'NAME-' then begins the names of this deployment's things and of no other's.
STACK_NAME = re.compile(r"[a-z][a-z0-9]{0,19}")


class DeployError(Exception):
    """What is missing or wrong, and what to do."""


class Cloud:
    """What `make deploy` and `make undeploy` do."""

    def __init__(self, session: Any, name: str, say: Say, poll_seconds: float = 3.0) -> None:
        if not STACK_NAME.fullmatch(name):
            raise DeployError(
                f"'{name}' cannot name a deployment: a small letter, then at most 19 small letters "
                "and digits."
            )
        if session.region_name is None:
            raise DeployError(
                "No AWS region is chosen. Name one, for example: make deploy REGION=eu-central-1"
            )
        if session.get_credentials() is None:
            raise DeployError(
                "No AWS credentials were found. Log in with the AWS CLI (aws configure, or aws sso "
                "login and AWS_PROFILE=...), or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; "
                "then try again."
            )
        self._session = session
        self._name = name
        self._say = say
        self._stacks = Stacks(session.client("cloudformation"), say, poll_seconds)
        self._sweeper = Sweeper(session, name, say)
        self._s3 = session.client("s3")

    def deploy(self, parameters: Mapping[str, str]) -> None:
        """Create or update all of it, and begin to build the image if it is a new one.

        Raises DeployError, PackageError, StackError.
        """
        bucket = self._staging_bucket()
        self._say(f"Deploying '{self._name}' in {self._session.region_name}, bucket {bucket}")
        self._make_staging_bucket(bucket)
        with TemporaryDirectory() as work:
            folder = Path(work)
            self._say("Packing the Lambda functions")
            code = self._upload(bucket, "lambda", build_lambda_package(folder))
            sources = build_image_sources(folder)
            source_key = self._upload(bucket, "image", sources)
        template_key = self._upload(bucket, "template", Package.of(TEMPLATE))
        self._stacks.deploy(
            self._name,
            f"{self._s3.meta.endpoint_url}/{bucket}/{template_key}",
            {
                **self._account_facts(),
                **parameters,
                "CodeBucket": bucket,
                "CodeKey": code,
                "SourceKey": source_key,
                "ImageTag": sources.digest,
            },
        )
        stack = self._stacks.find(self._name)
        assert stack is not None
        self._build_images(stack.outputs)
        self._say(f"\nAPI:         {stack.outputs['ApiUrl']}")
        self._say(f"Admin token: {stack.outputs['AdminTokenCommand']}")
        self._say(f"Bucket:      {stack.outputs['Bucket']}")

    def undeploy(self, delete_bucket: bool) -> None:
        """Delete all of it; the users' bucket only with `delete_bucket`. Raises StackError."""
        stack = self._stacks.find(self._name)
        if stack is None:
            self._say(f"There is no stack '{self._name}' in {self._session.region_name}.")
        else:
            self._sweeper.sweep()
            self._stacks.delete(self._name)
            # Again, for what the service made while it was being deleted.
            self._sweeper.sweep()
            self._sweeper.sweep_traces()
            bucket = stack.outputs.get("Bucket")
            if bucket is not None and delete_bucket:
                self._delete_bucket(bucket)
            elif bucket is not None:
                self._say(f"Kept: bucket {bucket} with the weights and pictures. To delete it:")
                self._say(f"  aws s3 rb --force s3://{bucket}")
        self._delete_bucket(self._staging_bucket())

    def _staging_bucket(self) -> str:
        account = self._session.client("sts").get_caller_identity()["Account"]
        return f"{self._name}-deploy-{account}-{self._session.region_name}"

    def _make_staging_bucket(self, bucket: str) -> None:
        region = self._session.region_name
        # The one region that may not be named.
        place = (
            {}
            if region == "us-east-1"
            else {"CreateBucketConfiguration": {"LocationConstraint": region}}
        )
        with suppress(self._s3.exceptions.BucketAlreadyOwnedByYou):
            self._s3.create_bucket(Bucket=bucket, **place)
        self._s3.put_public_access_block(
            Bucket=bucket,
            PublicAccessBlockConfiguration={
                "BlockPublicAcls": True,
                "IgnorePublicAcls": True,
                "BlockPublicPolicy": True,
                "RestrictPublicBuckets": True,
            },
        )

    def _upload(self, bucket: str, folder: str, package: Package) -> str:
        """The key of the uploaded package; the same contents have the same key."""
        key = f"{folder}/{package.digest}{package.path.suffix}"
        if self._s3.list_objects_v2(Bucket=bucket, Prefix=key)["KeyCount"] == 0:
            self._say(f"Uploading {key} ({package.path.stat().st_size / 1e6:.1f} MB)")
            self._s3.upload_file(str(package.path), bucket, key)
        return key

    def _account_facts(self) -> dict[str, str]:
        """What a new stack must know of its account; an old one keeps what it was told."""
        stack = self._stacks.find(self._name)
        if stack is not None and not stack.stillborn:
            return {}
        account = self._session.client("apigateway").get_account()
        return {"ApiLogRole": "present" if account.get("cloudwatchRoleArn") else "create"}

    def _build_images(self, outputs: Mapping[str, str]) -> None:
        wanted = outputs["ImageTags"].split()
        found = self._session.client("ecr").batch_get_image(
            repositoryName=outputs["Repository"], imageIds=[{"imageTag": tag} for tag in wanted]
        )
        there = {image["imageId"]["imageTag"] for image in found["images"]}
        missing = [tag for tag in wanted if tag not in there]
        if not missing:
            self._say(f"\nThe inference images are there already: {', '.join(wanted)}.")
            return
        project = outputs["BuildProject"]
        self._session.client("codebuild").start_build(projectName=project)
        self._say(
            f"\nBeing built (15 minutes, the WebUI's 30 more): {', '.join(missing)}. Endpoints can "
            "be created once their image is there. Watch it:\n  aws logs tail --follow --region "
            f"{self._session.region_name} /aws/codebuild/{project}"
        )

    def _delete_bucket(self, bucket: str) -> None:
        try:
            for page in self._s3.get_paginator("list_objects_v2").paginate(Bucket=bucket):
                keys = [{"Key": found["Key"]} for found in page.get("Contents", ())]
                if keys:
                    self._s3.delete_objects(Bucket=bucket, Delete={"Objects": keys, "Quiet": True})
            self._s3.delete_bucket(Bucket=bucket)
        except self._s3.exceptions.NoSuchBucket:
            return
        self._say(f"Deleted bucket {bucket}")
