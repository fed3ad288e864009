"""What looks like a secret: keys and tokens by a file's name or content, credentials in DVC's configuration."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from pipeline.errors import ConfigError
from pipeline.store.urls import has_credentials, redact

_KEY_NAME = re.compile(
    r".*\.(pem|key|p12|pfx|p8|jks|keystore|kdbx|ppk|gpg|asc|env|token|netrc|ovpn)"
    r"|id_(rsa|dsa|ecdsa|ed25519)(_sk)?|[._]?netrc|kubeconfig|\.?htpasswd|\.?pgpass|(hf_|api_?)?(token|key)s?(\.txt)?"
    r"|(credentials?|secrets?|client_secret.*|service[-_]?account.*|.*access_?keys?|rootkey)(\.(csv|ini|json|toml|txt|ya?ml))?",
    re.IGNORECASE,
)
_KEY_CONTENT = {
    "a private key": rb"-----BEGIN ([A-Z0-9]+ )*PRIVATE KEY( BLOCK)?-----|PuTTY-User-Key-File-\d|AGE-SECRET-KEY-1\w",
    "a service account": rb"\"type\"\s*:\s*\"(service_account|authorized_user)\"|\"private_key(_id)?\"\s*:\s*\"",
    "a key of AWS": rb"(?<![A-Z0-9])(AKIA|ASIA)[A-Z0-9]{16}(?![A-Z0-9])",
    "a key of Azure": rb"(AccountKey|SharedAccessSignature|SharedAccessKey)=\S{20}",
    "a login of .netrc": rb"(?<!\S)(machine\s+\S+|default)\s+(login|user)\s+\S+\s+password\s+\S",
    "a token": (
        rb"(?<!\w)(gh[opsur]_\w{36}|github_pat_\w{22}|glpat-[\w-]{20}|hf_[A-Za-z0-9]{30}|xox[abeoprs]-[\w-]{10}"
        rb"|sk-[A-Za-z0-9]{20}|sk-(ant|proj|svcacct)-[\w-]{20}|[rs]k_live_\w{20}|AIza[\w-]{35}|ya29\.[\w-]{20}|npm_\w{36}"
        rb"|pypi-[\w-]{50}|SG\.[\w-]{22}\.[\w-]{43}|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10})"
    ),
    # A digit, and nothing of a name: code and settings speak of tokens all the time.
    "a secret beside its name": (
        rb"(?i)(secret|passw(or)?d|passphrase|token|api_?key|access_?key|account_?key)\w*[\"']?\s*[:=]\s*[\"']?"
        rb"(?=[A-Z/+=]*\d)[A-Z0-9/+=-]{20,}[\"']?\s*([,;}#\r\n]|$)"
    ),
}
_SECRETS = {what: re.compile(pattern) for what, pattern in _KEY_CONTENT.items()}
_OPTION = re.compile(
    r"secret|password|passphrase|token|access_key|account_key|customer_key|connection_string", re.IGNORECASE
)
_SWITCHES = frozenset({"true", "false", "yes", "no", "on", "off", "1", "0"})
_QUERY = re.compile(r"^sig$|signature|token|secret|passw|credential|(access|api|account|^)_?key", re.IGNORECASE)
_URL = re.compile(r"[A-Za-z][\w+.-]*://[^\s'\",]+")


def secret_in(name: str, content: bytes) -> str | None:
    """Return what a file seems to hold by its name or content that nobody else may see, such as ``a private key``."""
    if _KEY_NAME.fullmatch(name):
        return "the name of a key"
    plain = content.replace(b"\0", b"")  # UTF-16, as shells of Windows write it
    return next((what for what, pattern in _SECRETS.items() if pattern.search(plain)), None)


def refuse_secrets_of_dvc(config: Path) -> None:
    """Raise ConfigError where a configuration of DVC holds passwords or keys, or URLs with such; none is fine."""
    if not config.is_file():
        return
    for line in config.read_text(encoding="utf-8").splitlines():
        option, _, value = (part.strip() for part in line.partition("="))
        value = value.strip("'\"")
        is_named = bool(value and _OPTION.search(option)) and value.lower() not in _SWITCHES
        if is_named or any(has_credentials(url) or _has_query_secret(url) for url in (value, *_URL.findall(line))):
            raise ConfigError(
                f"{config}: {redact(option)} looks like a secret, and this file travels; move it to .dvc/config.local "
                "with: dvc remote modify --local; nodes have rights of their own"
            )


def _has_query_secret(url: str) -> bool:
    """Tell whether a URL carries a token, as those do that are signed for whoever has them."""
    parts = urlsplit(url)
    fields = parse_qsl(f"{parts.query}&{parts.fragment}", keep_blank_values=True)
    return any(_QUERY.search(name) for name, value in fields if value)
