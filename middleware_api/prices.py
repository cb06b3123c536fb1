"""What machines cost, and the one place where that is made the cost of a job or an endpoint.

Standard library only, Python 3.10: the WebUI's process imports this module too.
"""

from __future__ import annotations

# On-demand list prices of SageMaker real-time inference in us-east-1, in US dollars an hour and
# instance. Written down by hand in the month below, from what AWS publishes at
# https://aws.amazon.com/sagemaker/ai/pricing/ and never fetched: check them against that page
# before you rely on them. Other regions cost up to half as much again. EC2's P4d became cheaper
# in June 2025: its price here may be too high.
PRICES_DATE = "2025-10"
PRICES_REGION = "us-east-1"

_PRICE_PER_HOUR = {
    "local": 0.0,  # a machine that is there anyway
    "ml.g4dn.xlarge": 0.7364,
    "ml.g4dn.2xlarge": 0.94,
    "ml.g4dn.4xlarge": 1.505,
    "ml.g4dn.8xlarge": 2.72,
    "ml.g4dn.12xlarge": 4.89,
    "ml.g4dn.16xlarge": 5.44,
    "ml.g5.xlarge": 1.408,
    "ml.g5.2xlarge": 1.515,
    "ml.g5.4xlarge": 2.03,
    "ml.g5.8xlarge": 3.06,
    "ml.g5.12xlarge": 7.09,
    "ml.g5.16xlarge": 5.12,
    "ml.g5.24xlarge": 10.18,
    "ml.g5.48xlarge": 20.36,
    "ml.g6.xlarge": 1.1267,
    "ml.g6.2xlarge": 1.222,
    "ml.g6.4xlarge": 1.654,
    "ml.g6.8xlarge": 2.518,
    "ml.g6.12xlarge": 5.752,
    "ml.g6.16xlarge": 4.246,
    "ml.g6.24xlarge": 8.344,
    "ml.g6.48xlarge": 16.688,
    "ml.p3.2xlarge": 3.825,
    "ml.p3.8xlarge": 14.688,
    "ml.p3.16xlarge": 28.152,
    "ml.p4d.24xlarge": 37.688,
    "ml.m5.large": 0.115,
    "ml.m5.xlarge": 0.23,
    "ml.m5.2xlarge": 0.461,
    "ml.m5.4xlarge": 0.922,
    "ml.c5.large": 0.102,
    "ml.c5.xlarge": 0.204,
    "ml.c5.2xlarge": 0.408,
    "ml.c5.4xlarge": 0.816,
}


def price_per_hour(instance_type: str) -> float | None:
    """US dollars an hour for one instance; None for a type that the table does not know."""
    return _PRICE_PER_HOUR.get(instance_type)


def cost(instance_type: str, seconds: float, instances: int = 1) -> float | None:
    """US dollars for that many instances over that time; None when the price is not known.

    A job's cost is its own seconds on one instance. The time that the instance took to start,
    and then waits for more jobs, is in no job's cost: the endpoint's has it.
    """
    price = price_per_hour(instance_type)
    return None if price is None else price * (instances * seconds / 3600)
