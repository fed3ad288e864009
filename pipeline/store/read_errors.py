"""What file systems and stores raise, and how a message says it."""

from __future__ import annotations

import re

import aiohttp

from pipeline.store.urls import has_credentials, redact, secrets_of

_URL_IN_TEXT = re.compile(r"[A-Za-z][\w+.-]*://[^\s'\"<>]+")
STORE_ERRORS: tuple[type[Exception], ...] = (aiohttp.ClientError,)
try:
    import botocore.exceptions

    STORE_ERRORS += (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError)
except ImportError:  # without s3fs
    pass
READ_ERRORS: tuple[type[Exception], ...] = (OSError, ValueError, ImportError, RuntimeError, *STORE_ERRORS)
"""What file systems raise over things that are not there or not allowed; stores derive theirs from Exception alone."""


def lacks_bucket(error: FileNotFoundError) -> bool:
    """Tell whether it is not a file that is missing but its whole bucket, of S3."""
    answer = getattr(error.__cause__, "response", None)
    return isinstance(answer, dict) and answer.get("Error", {}).get("Code") == "NoSuchBucket"


def describe(error: Exception, url: str) -> str:
    """Say what a file system found, in one line and without the URL's secrets."""
    if isinstance(error, FileNotFoundError):
        return "no such bucket" if lacks_bucket(error) else "no such file"
    if has_credentials(url):  # stores take pieces of a password for names, and say so
        return type(error).__name__
    text = str(error)
    for secret in sorted(secrets_of(url), key=len, reverse=True):
        text = text.replace(secret, "***")
    text = _URL_IN_TEXT.sub(lambda matched: redact(matched[0]), text)
    return (" ".join(text.split()) or type(error).__name__)[:300]
