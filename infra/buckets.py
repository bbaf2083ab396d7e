"""Makes the buckets named on the command line, BUCKET=USER, where they are missing, each open to that user alone.

Endpoint, region and credentials of the administrator come from the standard AWS environment. The user can list the
bucket, read, write and delete in it; bucket and policy themselves stay the administrator's.
"""

import json
import sys

import boto3
from botocore.exceptions import ClientError

ACTIONS = [
    "s3:GetBucketLocation",
    "s3:ListBucket",
    "s3:ListBucketMultipartUploads",
    "s3:GetObject",
    "s3:PutObject",
    "s3:DeleteObject",
    "s3:AbortMultipartUpload",
    "s3:ListMultipartUploadParts",
]

s3 = boto3.client("s3")
for name, _, user in (word.partition("=") for word in sys.argv[1:]):
    try:
        s3.head_bucket(Bucket=name)
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
            raise
        s3.create_bucket(Bucket=name)
    statement = {
        "Effect": "Allow",
        "Principal": {"AWS": [user]},
        "Action": ACTIONS,
        "Resource": [f"arn:aws:s3:::{name}", f"arn:aws:s3:::{name}/*"],
    }
    s3.put_bucket_policy(Bucket=name, Policy=json.dumps({"Version": "2012-10-17", "Statement": [statement]}))
