"""`python -m middleware_api.deploy`: put the middleware into an AWS account, or take it away."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from middleware_api.deploy.cloud import Cloud, DeployError
from middleware_api.deploy.package import PackageError, build_image_sources, build_lambda_package
from middleware_api.deploy.stack import StackError


def main(arguments: list[str] | None = None) -> int:
    """Exit code 1 after a refusal, which stderr tells."""
    parser = argparse.ArgumentParser(prog="python -m middleware_api.deploy", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    deploy = commands.add_parser("deploy", help="create the deployment, or update it")
    deploy.add_argument(
        "--set",
        action="append",
        default=[],
        type=_assignment,
        metavar="NAME=VALUE",
        dest="parameters",
        help="a parameter of template.yaml; kept by later updates",
    )
    undeploy = commands.add_parser("undeploy", help="delete the deployment")
    undeploy.add_argument(
        "--delete-bucket", action="store_true", help="the weights and pictures too"
    )
    for command in (deploy, undeploy):
        command.add_argument("--name", default="sdaws", help="the stack's name (sdaws)")
        command.add_argument("--region", help="the AWS configuration's, if it has one")
    package = commands.add_parser("package", help="only make the two zip files")
    package.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    try:
        if options.command == "package":
            options.folder.mkdir(parents=True, exist_ok=True)
            for made in (build_lambda_package(options.folder), build_image_sources(options.folder)):
                print(made.path)
        else:
            cloud = Cloud(boto3.Session(region_name=options.region), options.name, _say)
            if options.command == "deploy":
                cloud.deploy(dict(options.parameters))
            else:
                cloud.undeploy(options.delete_bucket)
    except (DeployError, PackageError, StackError, BotoCoreError, ClientError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _assignment(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"'{text}' is not NAME=VALUE")
    return name, value


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
