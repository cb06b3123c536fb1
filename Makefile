# Environments, made on first use and again when pins change: .venv for the middleware, the engine
# and their tests; .venv-webui with the WebUI's own pins for the extension; .venv-deploy for putting
# the middleware on AWS; .venv-emulator for trying that without AWS; .venv-forge with Forge's pins.

PYTHON ?= $(firstword $(foreach v,3.11 3.10 3.12,$(if $(filter 0,$(shell python$(v) -c 'import ensurepip' >/dev/null 2>&1; echo $$?)),python$(v))))
ifeq ($(PYTHON),)
PYTHON := $(shell python3 -c 'import sys, ensurepip; (3, 10) <= sys.version_info < (3, 13) and print("python3")' 2>/dev/null)
endif

# PyPI's torch for Linux brings CUDA's libraries (several GB). Without a GPU:
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
PIP_TORCH := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

export OMP_NUM_THREADS ?= 1
export WEBUI_DIR

.PHONY: demo test test-middleware test-extension serve ui docs check check-fuzz check-webui \
	check-forge check-training check-deploy deploy undeploy python clean

demo: .venv/ready
	.venv/bin/python -m middleware_api.demo

serve: .venv/ready
	.venv/bin/python -m middleware_api serve

ui: .venv-webui/ready
	.venv-webui/bin/python -m aws_extension

test: test-middleware test-extension

test-middleware: .venv/ready
	.venv/bin/python -m pytest -q $(BY_FILE) --ignore=tests/extension

test-extension: .venv/ready .venv-webui/ready
	.venv-webui/bin/python -m pytest -q $(BY_FILE) tests/extension

# A file's tests in one process: they share servers and browsers that take seconds to start.
BY_FILE = -n 2 --dist loadfile --no-loadscope-reorder

docs: .venv/ready
	.venv/bin/python -m middleware_api.api.reference
	.venv/bin/python -m middleware_api.api.training_reference
	.venv/bin/python -m middleware_api.deploy.routes

check: .venv/ready .venv-webui/ready
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy middleware_api
	.venv/bin/mypy --python-executable .venv-webui/bin/python aws_extension
	$(MAKE) test

# Everything that a real WebUI generates, made in the cloud, and pictures for the cloud made by a real
# WebUI; not part of `make test`. Needs a checkout
# of AUTOMATIC1111's WebUI 1.10.1 that has been started once:  make check-webui WEBUI_DIR=~/webui
check-webui: .venv/ready .venv-webui/ready
	.venv-webui/bin/python -m pytest -q --timeout 300 tests/extension/real_webui
	.venv/bin/python -m pytest -q -m webui --timeout 600 tests/test_webui_engine_real.py

# Minutes of requests made from the OpenAPI document; not part of `make test`.
check-fuzz: .venv/ready
	.venv/bin/python -m pip install -q --group fuzz
	.venv/bin/python -m tests.fuzz --examples 100

# Put the middleware into the AWS account that the AWS CLI's configuration names, or update it.
#   make deploy REGION=eu-central-1 NAME=sdaws SET="AlarmEmail=me@example.org ThrottleRate=100"
deploy: .venv-deploy/ready
	.venv-deploy/bin/python -m middleware_api.deploy deploy $(DEPLOYMENT) $(SET:%=--set %)

# The bucket with the weights and pictures stays, unless: make undeploy DELETE_BUCKET=yes
undeploy: .venv-deploy/ready
	.venv-deploy/bin/python -m middleware_api.deploy undeploy $(DEPLOYMENT) $(if $(filter yes,$(DELETE_BUCKET)),--delete-bucket)

DEPLOYMENT = $(if $(NAME),--name $(NAME)) $(if $(REGION),--region $(REGION))

# The template linted, deployed into an emulator and called there; not part of `make test`. Needs
# Python 3.12, on which the functions run: if python3.12 is not found, DEPLOY_PYTHON=<its path>.
check-deploy: .venv/ready .venv-deploy/ready .venv-emulator/ready
	.venv-emulator/bin/cfn-lint middleware_api/deploy/template.yaml
	.venv-emulator/bin/hadolint middleware_api/container/Dockerfile
	.venv/bin/python -m pytest -q -m deploy tests/deploy

# The pages and the panel in Forge's packages (gradio 4); not part of `make test`. gradio 4 leaves
# event loops open, of which pytest warns at the end.
check-forge: .venv-forge/ready
	.venv-forge/bin/python -m pytest -q -W ignore -m forge tests/forge

# That a training teaches what it is to: minutes on one core; not part of `make test`.
check-training: .venv/ready
	.venv/bin/python -m pytest -q -s -n 0 -m training tests/test_training_proof.py

.venv-forge/ready: pyproject.toml | python
	$(PYTHON) -m venv .venv-forge
	.venv-forge/bin/python -m pip install -q --upgrade pip
	.venv-forge/bin/python -m pip install -q --group forge-host --group test
	touch $@

# The functions' own Python where there is one: then their modules are compiled ahead.
DEPLOY_PYTHON ?= $(if $(filter 0,$(shell python3.12 -c 'import ensurepip' >/dev/null 2>&1; echo $$?)),python3.12,$(PYTHON))

.venv-deploy/ready: pyproject.toml | python
	$(DEPLOY_PYTHON) -m venv .venv-deploy
	.venv-deploy/bin/python -m pip install -q --upgrade pip
	.venv-deploy/bin/python -m pip install -q --group aws
	touch $@

.venv-emulator/ready: pyproject.toml | python
	$(DEPLOY_PYTHON) -m venv .venv-emulator
	.venv-emulator/bin/python -m pip install -q --upgrade pip
	.venv-emulator/bin/python -m pip install -q --group deploy-check
	touch $@

.venv/ready: pyproject.toml | python
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install -q --upgrade pip
	.venv/bin/python -m pip install -q $(PIP_TORCH) --group middleware --group aws --group engine --group train --group extension --group test-middleware --group check
	.venv/bin/python -m pip install -q --no-deps --group upscaling
	touch $@

.venv-webui/ready: pyproject.toml | python
	$(PYTHON) -m venv .venv-webui
	.venv-webui/bin/python -m pip install -q --upgrade pip
	.venv-webui/bin/python -m pip install -q --group webui-host --group extension --group test --group browser
	touch $@

python:
	@test -n "$(PYTHON)" || { echo "Python 3.10, 3.11 or 3.12 with venv is needed and was not found. Install one, or name it: make demo PYTHON=/path/to/python3.11"; exit 1; }

clean:
	rm -rf .venv .venv-webui .venv-forge .venv-deploy .venv-emulator var demo-output
