"""Makes the buckets named on the command line where they are missing.

Endpoint, region and credentials come from the standard AWS environment.
"""

import sys

import boto3
from botocore.exceptions import ClientError

s3 = boto3.client("s3")
for name in sys.argv[1:]:
    try:
        s3.head_bucket(Bucket=name)
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
            raise
        s3.create_bucket(Bucket=name)
