"""An S3-compatible server (moto) on 127.0.0.1 that checks signatures, and a line to it that can be cut, for tests."""

import contextlib
import logging
import os
import socket
import threading
import time

# Read when moto is imported: after a user, a key and its rights exist, every request has to be signed by somebody known.
os.environ["INITIAL_NO_AUTH_ACTION_COUNT"] = "3"
BUCKET = "corpora"
EVERYTHING = '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}'


@contextlib.contextmanager
def serving():
    """The environment by which clients reach a server that has an empty bucket, and no other user than that one."""
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        address = "http://{}:{}".format(*server.get_host_and_port())
        region = {"endpoint_url": address, "region_name": "us-east-1"}
        iam = boto3.client("iam", aws_access_key_id="any", aws_secret_access_key="any", **region)
        iam.create_user(UserName="writer")
        key = iam.create_access_key(UserName="writer")["AccessKey"]
        iam.put_user_policy(UserName="writer", PolicyName="all", PolicyDocument=EVERYTHING)
        secrets = {"aws_access_key_id": key["AccessKeyId"], "aws_secret_access_key": key["SecretAccessKey"]}
        boto3.client("s3", **secrets, **region).create_bucket(Bucket=BUCKET)
        yield {
            **{name.upper(): value for name, value in secrets.items()},
            "AWS_ENDPOINT_URL": address,
            "AWS_DEFAULT_REGION": "us-east-1",
            # Of nobody's own: neither files nor a machine's identity, and a cut line is not waited for.
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_MAX_ATTEMPTS": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
    finally:
        server.stop()


class Line:
    """A line to a server: every connection is cut once it has carried `up` or `down` bytes, or stands still with `stall`."""

    def __init__(self, address, up=None, down=None, stall=False):
        host, _, port = address.removeprefix("http://").partition(":")
        self.server, self.up, self.down, self.stall = (host, int(port)), up, down, stall
        self.full = threading.Event()  # a connection has come to its end
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.listener.close()

    def accept(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                server = socket.create_connection(self.server)
                for ends in ((client, server, self.up), (server, client, self.down)):
                    threading.Thread(target=self.carry, args=ends, daemon=True).start()

    def carry(self, source, target, limit):
        carried = 0
        with contextlib.suppress(OSError):
            while block := source.recv(16384):
                carried += len(block)
                if limit is not None and carried > limit:
                    self.full.set()
                    while self.stall:
                        time.sleep(0.1)
                    break
                target.sendall(block)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
