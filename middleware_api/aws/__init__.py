"""The middleware's ports on AWS: DynamoDB, S3, SageMaker, SQS; and its Lambda functions."""
