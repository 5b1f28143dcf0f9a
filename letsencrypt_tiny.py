#!/usr/bin/python3 -IS
"""letsencrypt-tiny: a line of certificates, for services that publish TLSA records (DANE).

usage: letsencrypt-tiny -c CONFIG [-k] [-n] {init, renew, cron, status, tlsa}

  init     make folders, account key, live key and certificate; once, by hand
  renew    obtain new certificates now; with --new-key stage a new private key instead, with
           --new-key --now make it (or the one that is staged) live without waiting
  cron     do whatever is due, silent when nothing is; daily
  status   tell what is there and what comes next; exit status 1 if something is overdue
  tlsa     tell the TLSA records that DNS must hold, as lines of a zone file, or --json, or
           commands for nsupdate (--nsupdate), with --ttl SECONDS (default 3600); with --check
           compare DNS with them, exit status 1 if it differs

  -c, --config CONFIG   the line's config file; may be repeated
  -k, --hooks           run the hooks
  -n, --dry-run         tell what cron or renew would do first, and why
  --version             tell the version, and the SHA-256 of this file

exit status: 0 done or nothing to do, 1 something due could not be done, 2 wrong usage or config,
75 another run holds the lock, 128+n ended by signal n
"""
# Services always use KEYS/live.key and CERTS/live.crt. A plain renewal keeps the key, so DNS stays
# as it is. When the key grows old, its successor is staged: it gets its certificate, both keys are
# published in DNS, and only when no cache can still hold the old records does it become live:
#
#     live.key too old -> staging.key -> staging.crt -> post-keychange -> wait -> live.key, live.crt
#
# Every run looks at what IS (files, state, DNS), does the first thing that is due, and looks again.
# So a crash, a full disk or a broken hook needs no code of its own: the next run goes on.
import fcntl, getopt, json, os, re, signal, stat, sys, time
from collections import namedtuple

try:
    sys.path.append(os.path.dirname(os.path.realpath(__file__)))  # python3 -I leaves it out
    from acme_tiny import (DEFAULT_DIRECTORY_URL, EXTENSION_REQUEST, SUBJECT_ALT_NAME, AccountKey,
                           AcmeError, Client, HttpFiles, ToolError, key_kind, openssl,
                           parse_certificate, pem, printable, public_key, tlv, utc)
except ImportError:
    sys.exit("letsencrypt-tiny: copy acme_tiny.py beside this file, or use the single file")

for module in "_sha2", "_sha256", "hashlib":  # the last one loads all of OpenSSL, which takes long
    try:
        new_sha256 = __import__(module).sha256
        break
    except ImportError:
        pass

__version__ = "1.0"
HOUR, DAY = 3600, 86400
# After failed requests; not quite a day, so that a daily cron job never comes a second too early.
RETRY_SECONDS = 0, 60, 600, 6000, DAY - 600
RETRY_AFTER_SECONDS = 8 * DAY  # the longest that a server can keep us away
CLOCK_SECONDS = HOUR           # what the CA's clock and ours may differ by
SIGNALS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP

# ---- Text ---------------------------------------------------------------------------------------


class Problem(Exception):
    """What the administrator is told in one line; status: the exit status (int)."""

    def __init__(self, text, status=1):
        super().__init__(text)
        self.status = status


class Stopped(BaseException):
    """A signal asks us to end; its number is args[0]."""


deaf = set()  # file descriptors that nobody reads


def emit(fd, text):
    """Write a line (str) to a file descriptor; a closed, full or stuck one never stops us."""
    import select
    data, poll = (text + "\n").encode("utf-8", "backslashreplace"), select.poll()
    poll.register(fd, select.POLLOUT)
    try:
        while data and fd not in deaf:
            if poll.poll(5000) != [(fd, select.POLLOUT)]:
                raise OSError
            data = data[os.write(fd, data[:4096]):]
    except OSError:
        deaf.add(fd)


def say(text):
    """Tell what is done (str) on stdout."""
    emit(1, text)


def complain(file, text):
    """Tell what is wrong (str) with the line of this config file (path) on stderr."""
    emit(2, "letsencrypt-tiny: %s: %s" % (file, text))


def reason(error):
    """The words (str) of an exception for people."""
    named = isinstance(error, OSError) and error.strerror
    return "%s: %s" % (error.filename or "the system", error.strerror) if named else str(error)


# ---- Config -------------------------------------------------------------------------------------


def host_name(name):
    """A host name (str) as A-labels in lower case. Raises ValueError, also for a name on which IDNA
    2003 (RFC 3490, which Python has) and 2008 (RFC 5891, which CAs ask for) differ."""
    if not name.isascii():
        import unicodedata
        from encodings import idna
        labels = [idna.nameprep(label) for label in name.split(".")]
        if set(name.lower()) & set("\u00df\u03c2\u200c\u200d") or not all(
                unicodedata.category(c) in "Ll Lo Lm Mn Mc Nd" for c in "".join(labels)
                if c != "-"):
            raise ValueError("%s: write its A-label (xn--...)" % name)
        name = ".".join(idna.ToASCII(label).decode() for label in labels)
    name = name.lower()
    if not re.match(r"(?=.{1,253}\Z)((?!-)[a-z0-9-]{1,63}(?<!-)(\.(?!\Z)|\Z))+\Z", name) or (
            name.rpartition(".")[2].isdigit()):
        raise ValueError(name + (" (wildcards need dns-01)" if "*" in name else ""))
    return name


def host_names(text):
    """The words of a text as host_name(): a list of 1 to 100 str without duplicates.
    Raises ValueError."""
    names = list(dict.fromkeys(map(host_name, text.split())))
    if not 0 < len(names) <= 100:
        raise ValueError("%d names" % len(names))
    return names


def path(text):
    """An absolute path (str) without a trailing slash. Raises ValueError."""
    if not text.startswith("/") or not text.isprintable():
        raise ValueError(text)
    return re.sub("/+", "/", text).rstrip("/") or "/"


def matching(pattern, many=False):
    """A reader of one word (str), or of many (list of str), that match a regular expression, in
    which a group named port is a port. The reader raises ValueError."""
    def read(text):
        words = text.split()
        found = [re.match("(%s)\\Z" % pattern, word) for word in words]
        if not all(found) or not words or not many and len(words) > 1 or any(
                int(match.groupdict().get("port") or 1) not in range(1, 65536) for match in found):
            raise ValueError(text)
        return words if many else words[0]
    return read


def mail_urls(text):
    """Mail addresses as mailto URLs (list of str). Raises ValueError."""
    words = matching(r"(mailto:)?[^@?#]+@[^@?#]+", True)(text.replace(",", " "))
    return [word if word.startswith("mailto:") else "mailto:" + word for word in words]


def servers(text):
    """DNS servers as address or address@port (list of str). Raises ValueError, OSError."""
    import socket
    for word in matching(r"[0-9A-Fa-f.:]+(@(?P<port>[0-9]{1,5}))?", True)(text):
        address = word.partition("@")[0]
        socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
    return text.split()


def number(low, high, kind=float):
    """A reader of a number of a kind (type) from low to high. The reader raises ValueError."""
    def read(text):
        if not low <= kind(text) <= high:
            raise ValueError(text)
        return kind(text)
    return read


PATH, PREFIX = "an absolute path", matching(r"[^./][^/]*")
OPTIONS = (  # key, default (... if it is required), what is expected, reader
    ("domains", ..., "1 to 100 host names", host_names),
    ("key-type", None, "rsa, ec-p256 or ec-p384", matching("rsa|ec-p256|ec-p384")),
    ("key-length", None, "bits of an RSA key, 2048 to 4096", number(2048, 4096, int)),
    ("max-key-age-days", ..., "days, above 0, at most 36500", number(1e-9, 36500)),
    ("staging-hours", 0.0, "hours, 0 to 87600", number(0, 87600)),
    ("renew-cert-before-expiry-days", None, "days, above 0, at most 36500", number(1e-9, 36500)),
    ("post-certchange", None, PATH + " of a program", path),
    ("post-keychange", None, PATH + " of a program", path),
    ("hook-timeout", 600.0, "seconds, above 0, at most 86400", number(1e-9, DAY)),
    ("account-key", ..., PATH, path),
    ("challenge-dir", ..., PATH, path),
    ("certs", ..., PATH, path),
    ("keys", ..., PATH, path),
    ("backups", ..., PATH, path),
    ("live", "live", "a file name prefix", PREFIX),
    ("staging", "staging", "a file name prefix", PREFIX),
    ("directory-url", DEFAULT_DIRECTORY_URL, "an https URL", matching("https://[!-~]+")),
    ("ca-bundle", None, PATH, path),
    ("contact", None, "mail addresses", mail_urls),
    ("proxy", None, "a URL such as http://proxy.example.org:3128", matching("https?://[!-~]+")),
    ("self-check", "warn", "no, warn or require", matching("no|warn|require")),
    ("standby", "no", "yes or no", matching("yes|no")),
    ("tlsa", None, "names such as _25._tcp.mx.example.org",
     matching(r"_(?P<port>[0-9]{1,5})\._(tcp|udp|sctp)(\.[A-Za-z0-9_-]{1,63})+\.?", True)),
    ("dns-resolver", None, "an address, or address@port",
     lambda text: servers(matching(".*")(text))[0]),
    ("dns-servers", None, "addresses, or address@port", servers),
    ("served", None, "host:port, host:port/smtp and the like", matching(r"\S+:(?P<port>[0-9]{1,5})"
     "(/([ls]mtp|imap|pop3|sieve|ldap|xmpp(-server)?|nntp|ftp|irc|mysql|postgres))?", True)),
)
Config = namedtuple("Config", [row[0].replace("-", "_") for row in OPTIONS] + ["file"])


def read_ini(text):
    """The keys and values (dict of str) in an INI text; sections are for its reader. Values go on
    in lines that are indented deeper than their key. Raises Problem (status 2)."""
    found, key, depth = {}, None, 0
    for count, line in enumerate(text.splitlines(), 1):
        words, indent = line.strip(), len(line) - len(line.lstrip())
        if not words or words[0] in "#;":
            continue
        if key and indent > depth:
            found[key] += "\n" + words
        elif re.match(r"\[[^]]*\]", words):
            key = None
        else:
            match = re.match(r"([^=:\s]+)\s*[=:]\s*(.*)\Z", words)
            if not match or match.group(1).lower() in found:
                raise Problem("line %d: %s: %s" % (count, printable(words), "this key is given "
                                                   "twice" if match else "expected key = value"), 2)
            key, depth = match.group(1).lower(), indent
            found[key] = match.group(2)
    return found


def read_config(file):
    """The Config in a file (path). Raises Problem: status 2 for a wrong text, else OSError."""
    try:
        with open(file, encoding="utf-8-sig") as stream:
            found = read_ini(stream.read())
    except UnicodeError:
        raise Problem("it is no UTF-8 text", 2)
    values, known = {}, [row[0] for row in OPTIONS]
    for key in [key for key in found if key not in known]:
        import difflib
        near = difflib.get_close_matches(key, known, 1, 0.5)
        raise Problem("unknown key %s%s" % (
            printable(key), "; did you mean %s?" % near[0] if near else ""), 2)
    for key, default, expected, read in OPTIONS:
        try:
            value = values[key.replace("-", "_")] = read(found[key]) if key in found else default
        except (ValueError, OverflowError, OSError) as error:
            raise Problem("%s: expected %s: %s" % (key, expected, printable(error)), 2)
        if value is ...:
            raise Problem("%s is missing: expected %s" % (key, expected), 2)
    values["key_type"] = values["key_type"] or ("rsa" if values["key_length"] else "ec-p256")
    config = Config(file=file, **values)
    keys = {place(config, "live", "key"), place(config, "staging", "key"), config.account_key}
    if config.key_length and config.key_type != "rsa":
        raise Problem("key-length is for RSA keys: leave it out with %s" % config.key_type, 2)
    if len(keys) < 3:
        raise Problem("live, staging and account-key must be different files", 2)
    if config.tlsa and not config.staging_hours:
        raise Problem("staging-hours must be above 0 with tlsa: a new key that goes live at once "
                      "fits no TLSA record that caches hold", 2)
    return config


def place(config, which, ext):
    """The path of a file of the line. which: "live" or "staging"; ext: "key", "crt", "state",
    "lock" or "tmp"."""
    folder = {"key": config.keys, "lock": config.keys, "tmp": config.backups}.get(ext, config.certs)
    return os.path.join(folder, "%s.%s" % (getattr(config, which), ext))


def check_owner(file):
    """As root, refuse a file (absolute path) that others could change, or a folder or link on the
    way to it. Raises Problem, OSError."""
    parts = file.split("/")
    for count in range(1, len(parts) + 1) if not os.geteuid() else ():
        part = "/".join(parts[:count]) or "/"
        mode, owner = os.lstat(part).st_mode, os.lstat(part).st_uid
        sticky = stat.S_ISDIR(mode) and mode & stat.S_ISVTX
        if owner or mode & 0o022 and not (sticky or stat.S_ISLNK(mode)):
            raise Problem("%s must belong to root and be writable for nobody else, as root runs "
                          "this: chown root, chmod go-w" % part)
        if stat.S_ISLNK(mode):
            check_owner(os.path.join(os.path.realpath(os.path.dirname(part)), os.readlink(part)))


# ---- Facts --------------------------------------------------------------------------------------

Key = namedtuple("Key", "spki kind bits made")  # spki: SHA-256 (hex); made: the file's time
Crt = namedtuple("Crt", "names not_before not_after spki sha256")  # spki: its leaf's, "" if bad
# state: as read_state(); asked: what is done once a run (SPKI digests of requests, "stage"); force:
# what is done though it is not due (init, renew, new-key, now); hooks: may they run; skew: seconds
# that the CA's clock is ahead, None while unknown
# dns, served: the problems that look_at_dns() and look_at_services() found (list of str), or None
Facts = namedtuple("Facts", "live_key live_crt staging_key staging_crt state asked force hooks "
                            "skew dns served", defaults=((), "", True, 0, None, None))

STATE = {  # the shape of the state file; 0.0 is a number, [] a list of anything
    "certchange": "", "keychange": [], "published": 0.0, "seen": 0.0, "ttl": 0.0, "told": 0.0,
    "looked": [], "challenges": [""],
    "account": {"directory": "", "url": "", "thumbprint": ""}, "owed": [],
    "retry": {"count": 0, "after": 0.0, "server": True, "names": [""], "directory": "",
              "error": ""}}


def sha256(data):
    """SHA-256 of data (bytes) in hex (str)."""
    return new_sha256(data).hexdigest()


def read_file(file):
    """The bytes of a file, None if there is none. Raises OSError."""
    try:
        with open(file, "rb") as stream:
            return stream.read()
    except FileNotFoundError:
        return None


def read_key(file):
    """The Key in a PEM file, None if there is none. Raises Problem for what is no key, OSError."""
    data = read_file(file)
    if data is None:
        return None
    try:
        spki = public_key(data.decode("ascii", "replace"))
        return Key(sha256(spki), *key_kind(spki), os.stat(file).st_mtime)
    except (ValueError, ToolError) as error:
        raise Problem("%s is no private key that can be used (%s): restore it from the backups" % (
            file, error))


def read_crt(file):
    """The Crt in a PEM file, None if there is none; one that is no certificate fits no key.
    Raises OSError."""
    data = read_file(file)
    if data is None:
        return None
    try:
        blocks = pem(data.decode("ascii", "replace"))
        crt = parse_certificate(dict(reversed(blocks))["CERTIFICATE"])  # the first one, the leaf
        return Crt(tuple(crt.names), crt.not_before, crt.not_after, sha256(crt.spki), sha256(data))
    except (ValueError, KeyError):
        return Crt((), 0, 0, "", sha256(data))


def read_state(config, now):
    """What is known of the past (dict like STATE). Whatever is lost, strange or, at now (seconds
    since 1970), from the future is left out, which at worst makes hooks run once more and clocks
    start anew."""
    def like(value, shape):
        if isinstance(shape, dict) and isinstance(value, dict):
            return all(like(value.get(name), shape[name]) for name in shape)
        if shape and isinstance(shape, list) and isinstance(value, list):
            return all(like(item, shape[0]) for item in value)
        return type(value) is type(shape) or shape == 0.0 and type(value) is int

    try:
        found = dict(json.loads(read_file(place(config, "live", "state")) or b"{}"))
    except (OSError, ValueError, TypeError, RecursionError):
        found = {}
    state = {name: found[name] for name in STATE if like(found.get(name), STATE[name])}
    for name, ahead in ("published", 0), ("seen", CLOCK_SECONDS), ("told", 0):
        if name in state and not 0 <= state[name] <= now + ahead:
            del state[name]
    retry = state.get("retry")
    if retry and not (retry["count"] > 0 and 0 <= retry["after"] <= now + (
            RETRY_AFTER_SECONDS if retry["server"] else DAY)):
        del state["retry"]
    if not all(re.match(r"[A-Za-z0-9_-]+\Z", os.path.basename(file)) and os.path.dirname(
            file) == config.challenge_dir for file in state.get("challenges", ())):  # to be removed
        del state["challenges"]
    return state


# ---- Decision -----------------------------------------------------------------------------------

# verb and what: as in perform(); text and why: for people; when: since when it is due (seconds
# since 1970), or for a wait until when
Step = namedtuple("Step", "verb what text why when", defaults=("", "", "", 0))


def decide(config, facts, now):
    """The next Step from what is there; pure. now: seconds since 1970. Its order makes it safe."""
    key, crt, skey, scrt = facts[:4]
    fits = crt and crt.spki == key.spki
    # A crash or a power cut while a staged pair became live
    if skey and skey.spki == key.spki:
        return Step("drop", "key", "Removing '%s.key'" % config.staging, "it is the live key")
    if scrt and not skey and scrt.spki == key.spki and not fits:
        return Step("rename", "crt", "Making '%s.crt' live" % config.staging, "it has the live key")
    if scrt and not skey:
        return Step("drop", "crt", "Moving '%s.crt' to the backups" % config.staging, "no key")
    if skey and crt and not fits and crt.spki == skey.spki:
        return Step("rename", "key", "Making '%s.key' live" % config.staging, "live.crt has it")

    blocked = blocked_until(config, facts, now)
    can_ask = facts.skew is None and not blocked and "clock" not in facts.asked  # what time it is
    for which, some_key, some_crt in (("live", key, crt), ("staging", skey, scrt)):
        why, since = request_due(config, facts, some_key, some_crt, now)
        if why and not blocked and some_key.spki not in facts.asked:
            step = Step("request", which, "Obtaining certificate '%s' for %s" % (
                getattr(config, which), ", ".join(config.domains)), why, since)
            dated = since and facts.force != "renew"
            return step._replace(verb="clock") if dated and can_ask else step
    unstage = unstage_step(config, facts, now)
    for step in (key_step(config, facts, now),
                 unstage if not config.staging_hours or facts.force == "now" else Step("wait"),
                 hook_step(config, facts) if fits and facts.hooks else Step("wait"), unstage):
        # What starts or ends a time of waiting is not done by a clock that the CA finds wrong
        timed = facts.force != "now" and (step.verb in ("stage", "unstage", "publish") or (
            staged_pair(facts) and step.what in ("dns", "post-keychange")))
        unknown = facts.skew is None and not can_ask and step.verb != "look"
        if step.verb != "wait" and not (timed and (unknown or wrong_clock(facts))):
            return step._replace(verb="clock") if timed and can_ask else step
    return outlook(config, facts, now)


def hook_step(config, facts):
    """The Step that a hook is owed, or a wait."""
    owed = hooks_owed(config, facts)
    step = Step("hook", owed[0], "Running %s" % owed[0], "it is owed") if owed else Step("wait")
    if not owed or owed[0] == "post-certchange":
        return step
    if staged_pair(facts) and config.tlsa and "ttl" not in facts.state:
        # How long may caches hold what is there now?
        return Step("look" if facts.dns is None else "wait", "dns", "Looking at DNS",
                    "which TTL have its records?")
    known = facts.state.get("keychange", [] if facts.force == "init" else [""])
    if not config.served or facts.served == [] or set(known) <= {*keys_of(facts), None}:
        return step
    if facts.served is None:  # else the key that a service uses could leave DNS
        return Step("look", "served", "Looking at the services", "a key leaves DNS")
    if config.post_certchange and "post-certchange" not in facts.asked:
        return Step("hook", "post-certchange", "Running post-certchange again", facts.served[0])
    return Step("wait")


def wrong_clock(facts):
    """Seconds that the CA's clock is ahead of ours, if they are too far apart, else 0."""
    return facts.skew if abs(facts.skew or 0) > CLOCK_SECONDS else 0


def request_due(config, facts, key, crt, now):
    """(why, since when) a certificate for the key must be requested: str and seconds since 1970,
    ("", 0) if it need not."""
    if key is None:
        return "", 0
    if crt is None or crt.spki != key.spki:
        return "there is none for this key" if crt else "there is none", 0
    if set(crt.names) != set(config.domains):
        return "it has other names", 0
    due = renewal_time(config, crt)
    if now + min(0, wrong_clock(facts)) >= due:  # a clock that is ahead must not order every day
        return "it ends %s" % utc(crt.not_after), due
    return ("asked for", now) if facts.force == "renew" and key.spki not in facts.asked else ("", 0)


def renewal_time(config, crt):
    """When (seconds since 1970) a certificate (Crt) is to be renewed: a third of its life before it
    ends, half if it lives less than 10 days; the configured days, but at most half its life."""
    life = crt.not_after - crt.not_before
    ahead = life / 2 if life < 10 * DAY else life / 3
    days = config.renew_cert_before_expiry_days
    return crt.not_after - (min(days * DAY, life / 2) if days else ahead)


def key_step(config, facts, now):
    """The Step that stages a new key, or the wait for it."""
    key, why, due = facts.live_key, "", old_time(config, facts)
    bits = config.key_length or max(key.bits, 2048)
    if key.kind != config.key_type or key.kind == "rsa" and key.bits != bits:
        why, due = "the live key is %s with %d bits" % (key.kind, key.bits), 0
    elif now >= due:
        why = "the live key is %d days old" % ((now - key.made) / DAY)
    elif facts.force in ("new-key", "now"):
        why, due = "asked for", now
    elif config.standby == "yes":
        why, due = "it stands by", 0
    if why and not facts.staging_key and "stage" not in facts.asked:
        return Step("stage", "", "Making a new private key '%s' (%s)" % (
            config.staging, config.key_type), why, due)
    return Step("wait", why="a new key is made", when=due)


def old_time(config, facts):
    """When (seconds since 1970) the live key is too old."""
    return facts.live_key.made + config.max_key_age_days * DAY


def staged_pair(facts):
    """Is there a staged key with its certificate?"""
    key, crt = facts.staging_key, facts.staging_crt
    return bool(key and crt and crt.spki == key.spki)


def keys_of(facts):
    """The digests [live, staging or None] that DNS must hold (RFC 7671 section 8.1: of both keys);
    a key counts once certified."""
    return [facts.live_key.spki, facts.staging_key.spki if staged_pair(facts) else None]


def hooks_owed(config, facts):
    """The names of the hooks that have not yet exited 0 for what is on disk, in their order."""
    state, owed = facts.state, []
    if config.post_certchange and state.get("certchange") != facts.live_crt.sha256:
        owed.append("post-certchange")
    if config.post_keychange and (state.get("keychange") != keys_of(facts) or staged_pair(facts)
                                  and config.staging_hours and "published" not in state):
        owed.append("post-keychange")
    return owed


def unstage_step(config, facts, now):
    """The Step that brings a staged pair nearer to being live, or the wait for it."""
    if not staged_pair(facts):
        return Step("wait")
    since, name = facts.state.get("published"), config.staging
    unseen = Step("wait", "dns", "", "'%s' waits: %s" % (name, "; ".join(facts.dns or ())), now)
    seen = facts.state.get("seen", now) if config.tlsa else 0
    due = max(seen, since or 0) + max(config.staging_hours * HOUR, 2 * facts.state.get("ttl", 0))
    if facts.force == "now" and now < facts.staging_crt.not_after:
        return Step("unstage", "", "Making '%s' live at once%s" % (
            name, " (until the old TLSA records are out of all caches, who has them refuses it)"
            if now < due or config.staging_hours and not (seen or since) else ""), "asked for", now)
    if request_due(config, facts, facts.staging_key, facts.staging_crt, now)[0]:
        return Step("wait", why="'%s' waits for its certificate" % name, when=now)
    if facts.dns and "ttl" not in facts.state:
        return unseen
    if config.post_keychange and config.staging_hours and (
            since is None or facts.state.get("keychange") != keys_of(facts)):
        return Step("wait", why="'%s' waits for post-keychange (-k)" % name, when=now)
    if config.staging_hours and since is None and not config.tlsa:
        return Step("publish", "", "Starting the staging time of '%s'" % name, "its pair is there")
    if config.tlsa and facts.dns is None:
        return Step("look", "dns", "Looking at DNS", "'%s' is staged" % name)
    if config.tlsa and facts.dns:
        if config.post_keychange and facts.hooks and "post-keychange" not in facts.asked:
            return Step("hook", "post-keychange", "Running post-keychange again", unseen.why,
                        since or now)
        return unseen
    if config.standby == "yes" and now < old_time(config, facts):
        return Step("wait", why="'%s' stands by to go live" % name, when=old_time(config, facts))
    if now + min(0, (facts.skew or 0) + 2) < due:  # the CA tells seconds only
        return Step("wait", "dns" if config.tlsa else "", why="'%s' goes live" % name, when=due)
    return Step("unstage", "", "Making '%s' live" % name, "the staging time is over", due)


def blocked_until(config, facts, now):
    """Until when (seconds since 1970) no request is allowed after a failure; None if one is."""
    retry = facts.state.get("retry")
    if not retry or retry["directory"] != config.directory_url or retry["after"] <= now:
        return None
    return retry["after"] if retry["server"] or retry["names"] == config.domains else None


def outlook(config, facts, now):
    """The wait Step when nothing can be done: what comes next, and when."""
    coming = []
    for which, key, crt in (("live", facts.live_key, facts.live_crt),
                            ("staging", facts.staging_key, facts.staging_crt)):
        why, _ = request_due(config, facts, key, crt, now)
        if why:
            return Step("wait", "request", why="certificate '%s' is due (%s)" % (
                getattr(config, which), why), when=blocked_until(config, facts, now) or now)
        if key:
            coming.append((renewal_time(config, crt), "'%s' is renewed" % getattr(config, which)))
    step = (unstage_step if facts.staging_key else key_step)(config, facts, now)
    when, why = min(coming + [(step.when, step.why)])
    return Step("wait", why=why, when=when)


# ---- Files: the only code that writes -----------------------------------------------------------


def sync_folder(file):
    """Make what was done to the folder of this file last. Raises OSError."""
    fd = os.open(os.path.dirname(file), os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def write_file(file, data, mode=0o600, like=None, temp=None):
    """Put data (bytes) in a file so that whoever reads it finds the old or the new, never half.

    mode: whatever the umask; like: stat of a file whose owner, group and mode to take.
    Raises OSError.
    """
    temp = temp or file + ".tmp"
    try:
        fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with open(fd, "wb") as stream:
            stream.write(data)
            stream.flush()
            if like:  # the folder may have given it another group than ours (setgid)
                os.fchown(fd, like.st_uid, like.st_gid)
            os.fchmod(fd, stat.S_IMODE(like.st_mode) if like else mode)
            os.fsync(fd)
        os.replace(temp, file)
        sync_folder(file)
    except OSError as error:
        raise OSError(error.errno, "cannot be written: %s" % error.strerror, file)
    finally:
        if os.path.lexists(temp):
            os.unlink(temp)


def back_up(config, file):
    """Keep the file (path) in the backups, by a hard link where possible. Raises OSError."""
    name = "%s.%s" % (os.path.basename(file), time.strftime("%Y%m%d-%H%M%S", time.gmtime()))
    target, count = os.path.join(config.backups, name), 0
    while os.path.lexists(target):
        count += 1
        target = os.path.join(config.backups, "%s-%d" % (name, count))
    try:
        os.link(os.path.realpath(file), target)
        sync_folder(target)
    except FileExistsError:  # another line was quicker
        back_up(config, file)
    except OSError:
        write_file(target, read_file(file), like=os.stat(file), temp=place(config, "live", "tmp"))


def update_state(config, **changes):
    """Change entries of the state file; None removes one. Raises OSError."""
    old = read_state(config, time.time())
    new = {k: v for k, v in dict(old, **changes).items() if v is not None}
    if new != old:
        write_file(place(config, "live", "state"),
                   (json.dumps(new, indent=1, sort_keys=True) + "\n").encode(), 0o644)


def rename(config, *exts):
    """Give the staged files with these extensions the live names; what has them goes to the backups
    first. Raises OSError."""
    for ext in exts:
        if os.path.exists(place(config, "live", ext)):
            back_up(config, place(config, "live", ext))
    # A signal between two renames would leave a key without its certificate until the next run
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        for ext in exts:
            if config.standby == "yes":
                os.utime(place(config, "staging", ext))  # its age is that of its life
            os.replace(place(config, "staging", ext), place(config, "live", ext))
        for ext in exts:
            sync_folder(place(config, "live", ext))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def drop(config, ext):
    """Remove the staged file with this extension; a certificate goes to the backups first.
    Raises OSError."""
    file = place(config, "staging", ext)
    if ext == "crt":
        back_up(config, file)
    os.unlink(file)
    sync_folder(file)


def make_folder(folder, mode):
    """Make a folder (path) of this mode (int), and those above it. Raises OSError."""
    if not os.path.isdir(folder):
        make_folder(os.path.dirname(folder), 0o755)
        say("Making folder %s" % folder)
        umask = os.umask(0)
        try:
            os.mkdir(folder, mode)
        finally:
            os.umask(umask)
        sync_folder(folder)


def make_key(file, kind, bits=None, like=None):
    """Write a new private key (PKCS#8 PEM), 0600 from the first byte. kind: rsa, ec-p256 or
    ec-p384; bits: of an RSA key, else 3072; like: as in write_file(). Raises OSError."""
    algorithm, size = ("RSA", "rsa_keygen_bits:%d" % (bits or 3072)) if kind == "rsa" else (
        "EC", "ec_paramgen_curve:P-" + kind[4:])
    write_file(file, openssl("genpkey", "-algorithm", algorithm, "-pkeyopt", size), like=like)


def lock(file, flags=fcntl.LOCK_EX | fcntl.LOCK_NB):
    """A descriptor that holds the lock of a file or folder (path) until it is closed. flags: as in
    flock(2). Raises Problem (status 75), OSError."""
    folder = os.path.isdir(file)
    fd = os.open(file, os.O_RDONLY if folder else os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, flags)
    except BlockingIOError:
        os.close(fd)
        raise Problem("another run holds %s" % file, 75)
    return fd


def make_account_key(config):
    """Make the account key (P-256) unless it is there. Raises OSError."""
    fd = lock(os.path.dirname(config.account_key), fcntl.LOCK_EX)  # lines may share this key
    try:
        if not os.path.lexists(config.account_key):
            say("Making account key %s" % config.account_key)
            make_key(config.account_key, "ec-p256")
    finally:
        os.close(fd)


def clean_up(config):
    """Remove what a killed run left: temporary and challenge files; tighten keys of 2017.
    Raises OSError."""
    left = read_state(config, time.time()).get("challenges", [])
    keys = [place(config, "live", "key"), place(config, "staging", "key"), config.account_key]
    temps = [file + ".tmp" for file in keys + [place(config, which, ext) for which in (
        "live", "staging") for ext in ("crt", "state")]]
    fd = lock(os.path.dirname(config.account_key), fcntl.LOCK_EX)
    for file in left + [place(config, "live", "tmp")] + temps:
        try:
            os.unlink(file)
        except FileNotFoundError:
            pass
        except OSError as error:
            complain(config.file, "cannot remove %s" % reason(error))
    os.close(fd)
    if left:
        update_state(config, challenges=None)
    for file in keys:
        if os.path.exists(file) and os.stat(file).st_mode & 0o007:
            say("Making %s readable for its owner only" % file)
            os.chmod(file, 0o600)


# ---- DANE: what DNS and the services show -------------------------------------------------------

A, NS, CNAME, SOA, AAAA, TLSA = 1, 2, 5, 6, 28, 52
# authentic: AD; authoritative: AA; records, authority: [(owner, type, TTL in seconds, data)], where
# data is bytes, or a name (str) for NS and CNAME
Answer = namedtuple("Answer", "code authentic authoritative records authority")


def dns_name(message, at):
    """(name, offset behind it) of the name (str) at an offset (int) in a DNS message (bytes; RFC
    1035 section 4.1.4). Raises ValueError, IndexError."""
    labels, end = [], None
    for _ in range(128):
        size = message[at]
        if size >= 0xc0:
            end, at = end or at + 2, (size & 0x3f) << 8 | message[at + 1]
        elif size:
            label = message[at + 1:at + 1 + size].decode("ascii", "backslashreplace").lower()
            labels.append(printable(label))
            at += 1 + size
        else:
            return ".".join(labels), end or at + 1
    raise ValueError("a DNS name without end")


def dns_parse(message):
    """The Answer in a DNS message (12 bytes or more; RFC 1035 section 4). Raises ValueError,
    IndexError."""
    flags, *counts = [int.from_bytes(message[i:i + 2], "big") for i in (2, 4, 6, 8)]
    at, parts = 12, []
    for _ in range(counts[0]):
        at = dns_name(message, at)[1] + 4
    for count in counts[1:]:
        parts.append([])
        for _ in range(count):
            owner, at = dns_name(message, at)
            kind, ttl, size = [int.from_bytes(message[at + i:at + j], "big")
                               for i, j in ((0, 2), (4, 8), (8, 10))]
            at += 10 + size
            data = dns_name(message, at - size)[0] if kind in (NS, CNAME) else message[at - size:at]
            parts[-1].append((owner, kind, ttl, data))
    if at > len(message):
        raise ValueError("a DNS answer is cut short")
    return Answer(flags & 15, bool(flags & 0x20), bool(flags & 0x400), *parts)


def dns_send(server, query, way):
    """The message (bytes) that a server (address, or address@port) sends to a query (bytes), by
    UDP or TCP (way: a socket type; RFC 1035 section 4.2), with 2 seconds to connect and 2 for all
    of it. Raises OSError."""
    import socket
    address, _, port = server.partition("@")
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, way) as sock:
        sock.settimeout(2)
        sock.connect((address, int(port or 53)))
        if way == socket.SOCK_DGRAM:
            sock.send(query)
            return sock.recv(4096)
        sock.sendall(len(query).to_bytes(2, "big") + query)
        data, end = b"", time.monotonic() + 2
        while len(data) < 2 or len(data) < 2 + int.from_bytes(data[:2], "big"):
            sock.settimeout(max(0.01, end - time.monotonic()))
            more = sock.recv(4096)
            if not more:
                raise ConnectionError("it breaks off")
            data += more
        return data[2:]


def dns_ask(server, name, kind, flags=b"\x01\x20"):
    """The Answer of a server (address, or address@port) to one question: the records of a kind
    (int) of a name (RFC 1035 section 4.1.2, with EDNS, RFC 6891).

    flags: two bytes, by default RD and AD (RFC 6840 section 5.7). Raises ValueError if there is no
    Answer after three tries, OSError if there is no route.
    """
    import socket
    labels = [label.encode() for label in name.split(".") if label]
    question = b"".join(bytes([len(label)]) + label for label in labels) + bytes([0, 0, kind, 0, 1])
    error = "nonsense"
    for _ in range(3):
        # One question, and an OPT record for answers of 1232 bytes
        query = os.urandom(2) + flags + bytes([0, 1, 0, 0, 0, 0, 0, 1]) + question + bytes(
            [0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0])
        try:
            message = dns_send(server, query, socket.SOCK_DGRAM)
            if message[2] & 2:
                message = dns_send(server, query, socket.SOCK_STREAM)
            echo = message[:2] + message[12:12 + len(question)].lower()
            if echo == query[:2] + question.lower() and message[2] & 0x80:
                answer = dns_parse(message)
                if answer.code in (0, 3):
                    return answer
                error = ("SERVFAIL: is the zone bogus?" if answer.code == 2 else
                         "error %d" % answer.code)
        except (socket.timeout, ConnectionError, IndexError, ValueError) as failure:
            error = failure
        except OSError as failure:
            raise OSError(failure.errno, failure.strerror, server)
    raise ValueError("%s does not answer (%s)" % (server, error))


def dns_resolver(config):
    """The resolver to ask (address, or address@port): as configured, else of resolv.conf."""
    found = re.search(rb"(?m)^nameserver\s+([0-9A-Fa-f.:]+)", read_file("/etc/resolv.conf") or b"")
    return config.dns_resolver or (found.group(1).decode() if found else "127.0.0.1")


def dns_resolve(config, name, kind, validated=True):
    """The Answer of the resolver, as dns_ask(). Raises ValueError if there is none, or one that is
    not to be believed (with validated=False None is returned then), OSError."""
    server = dns_resolver(config)
    answer = dns_ask(server, name, kind)
    near = config.dns_resolver or re.match(r"127\.|::1(@|\Z)", server)
    if not (answer.authentic and near or answer.authoritative and config.dns_resolver):
        if not validated:
            return None
        raise ValueError("the answer of the resolver %s is not validated: it %s" % (
            server, "is not on this machine: name it as dns-resolver if you trust it" if not near
            else "has AA, but no AD: name it as dns-resolver if it is the zone's own"
            if answer.authoritative else "has neither AD nor AA: is the zone signed, does it "
            "validate?"))
    return answer


def dns_follow(answer, name, kind):
    """(owner, TTL, [data]) of the records of a kind (int) that an Answer has for a name, behind its
    CNAMEs (RFC 1034 section 3.6.2). TTL: the largest (seconds), theirs too."""
    ttl, owner = 0, name.rstrip(".").lower()
    for _ in answer.records:
        for some, sort, seconds, data in answer.records:
            if some == owner and sort == CNAME and kind != CNAME:
                owner, ttl = data, max(ttl, seconds)
    found = [(seconds, data) for some, sort, seconds, data in answer.records
             if some == owner and sort == kind]
    return owner, max([ttl] + [seconds for seconds, _ in found]), [data for _, data in found]


def dns_own(config, owner):
    """[(server, owner, Answer or its error)]: what each of the zone's own servers has for TLSA
    records of the owner (or of its alias). Raises ValueError, OSError if they are not found."""
    import errno, socket
    no_route = errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT

    def find(name, kind):  # RD and CD: not validated, for a hook may have to mend the zone
        return dns_ask(dns_resolver(config), name, kind, b"\x01\x10")

    def ask(address):
        try:
            answer = dns_ask(address, owner, TLSA, b"\0\0")
            return answer if answer.authoritative else ValueError(
                "%s is no server of its zone" % address)
        except (ValueError, OSError) as error:
            return error

    servers = {server: [server] for server in config.dns_servers or ()}
    if not servers:
        owner = dns_follow(find(owner, TLSA), owner, TLSA)[0]
        soa = find(owner, SOA)
        zone = [record[0] for record in soa.records + soa.authority if record[1] == SOA] or [owner]
        for name in dns_follow(find(zone[0], NS), zone[0], NS)[2]:
            servers[name] = [socket.inet_ntop(family, data) for kind, family in (
                (A, socket.AF_INET), (AAAA, socket.AF_INET6))
                for data in dns_follow(find(name, kind), name, kind)[2]]
    if not servers:
        raise ValueError("its zone's own servers are not found: set dns-servers")
    found = []
    for name, addresses in servers.items():
        rows = [(address, owner, ask(address)) for address in addresses]
        # No route, as to IPv6 from a machine without, matters only if there is none to any address
        routed = [row for row in rows if getattr(row[2], "errno", None) not in no_route]
        found += routed or rows[-1:] or [(name, owner, ValueError("%s has no address" % name))]
    return found


def tlsa_base(config, name):
    """The name (str) at which clients look for a TLSA name's records: if its host is an alias,
    first at the alias' end (RFC 7671 section 7). Raises ValueError, OSError."""
    port, protocol, host = name.rstrip(".").lower().split(".", 2)
    alias = dns_resolve(config, host, A, False)  # one that is not validated is not followed
    other = "%s.%s.%s" % (port, protocol, dns_follow(alias, host, A)[0] if alias else host)
    there = other != name and dns_resolve(config, other, TLSA, False)
    return other if there and dns_follow(there, other, TLSA)[2] else name


def tlsa_compare(found, chains):
    """(missing, stale): what TLSA records found (list of bytes; RFC 6698 section 2.1) lack, as
    texts, and those that match nothing. chains: {name: [DER of leaf, DER of issuer, ...]} which
    all must match one record of each (usage, selector, matching type) that is used (RFC 7671
    section 8). Raises ValueError."""
    import hashlib
    kinds = {record[:3] for record in found if len(record) > 3 and record[0] < 4
             and record[1] < 2 and record[2] < 3}
    missing, known = [] if kinds else ["no TLSA record"], set()
    for name, chain in chains.items():
        for usage, selector, matching in kinds:
            fits = set()
            for cert in chain[:1] if usage & 1 else chain[1:]:
                data = parse_certificate(cert).spki if selector else cert
                data = data if not matching else hashlib.new(
                    "sha256" if matching == 1 else "sha512", data).digest()
                fits.add(bytes([usage, selector, matching]) + data)
            if not fits & set(found):
                missing.append("no %d %d %d record for '%s'" % (usage, selector, matching, name))
            known |= fits
    return missing, [record for record in found if record not in known]


def look_at_dns(config, facts):
    """(problems, TTL, stale): what keeps the keys on disk from being published for all (list of
    str, [] if nothing does), the records' largest TTL (seconds, None if there is no telling),
    records of other keys (list of str). Raises OSError for what is on disk."""
    problems, ttls, stale, chains = [], [], [], {}
    for which in ["live", "staging"] if staged_pair(facts) else ["live"]:
        file = place(config, which, "crt")
        try:
            text = (read_file(file) or b"").decode("ascii", "replace")
            # All must be certificates: what is none is a ValueError
            chains[getattr(config, which)] = [crt for _, crt in pem(text) if parse_certificate(crt)]
        except ValueError as error:
            return ["%s: %s" % (file, error)], None, []
    for name in config.tlsa:
        base, answers, own = name, [], []
        try:
            base = tlsa_base(config, name)
            answers = [("the resolver", base, dns_resolve(config, base, TLSA))]
        except (OSError, ValueError) as error:
            problems.append("%s: %s" % (name, reason(error)))
        try:
            own = dns_own(config, dns_follow(answers[0][2], base, TLSA)[0] if answers else base)
        except (OSError, ValueError) as error:
            problems.append("%s: %s" % (name, reason(error)))
        problems += ["%s: %s" % (row[1], reason(row[2])) for row in own
                     if isinstance(row[2], Exception)]
        own = [row for row in own if not isinstance(row[2], Exception)]
        # The resolver's TTL is only what is left of it, but that of an alias is seen only there
        ttls.append(max(dns_follow(answer, owner, TLSA)[1] for _, owner, answer in answers + own)
                    if own else None)
        for server, owner, answer in answers + own:
            missing, other = tlsa_compare(dns_follow(answer, owner, TLSA)[2], chains)
            problems += ["%s: %s says %s" % (owner, server, text) for text in missing]
            stale += ["%s: %s" % (owner, " ".join(map(str, [*record[:3], record[3:].hex()])))
                      for record in other]
    return (list(dict.fromkeys(problems)), None if None in ttls else max(ttls), sorted(set(stale)))


def look_at_services(config, facts):
    """What is wrong (list of str) with the services that must use the live key by now, each asked
    for 20 seconds at most."""
    problems = []
    for service in config.served:
        where, _, protocol = service.partition("/")
        try:
            text = openssl("s_client", "-connect", where,
                           *(["-starttls", protocol] if protocol else []), seconds=20)
            # Without -showcerts it prints one certificate, the leaf
            leaf = parse_certificate(pem(text.decode("ascii", "replace"))[0][1])
            if sha256(leaf.spki) != facts.live_key.spki:
                problems.append("%s uses another key than the live one" % service)
        except (OSError, ValueError) as error:
            problems.append("%s cannot be reached: %s" % (service, reason(error)))
    return problems


# ---- Actions ------------------------------------------------------------------------------------


class Run:
    """What this run did so far, as far as it is not on disk: asked, force, hooks, skew, dns, served
    as in Facts; client: the Client for all its requests, or None; failed: did one fail; status: the
    exit status (int); by_hand: is it no cron job; trouble: why the CA told no time (str)."""

    def __init__(self, config, hooks=False, force="", skew=None):
        self.config, self.hooks, self.force, self.skew = config, hooks, force, skew
        self.asked, self.client, self.failed, self.status = frozenset(), None, False, 0
        self.dns, self.served, self.by_hand, self.trouble = None, None, bool(force), ""

    def facts(self):
        """The Facts as they are now. Raises Problem, OSError."""
        config, live = self.config, place(self.config, "live", "key")
        key = read_key(live)
        if key is None:
            raise Problem("%s is missing: run init, or restore it from %s" % (live, config.backups))
        state = read_state(config, time.time())
        if self.by_hand and not self.failed and not state.get("retry", {}).get("server"):
            state.pop("retry", None)  # only cron waits after a failure
        return Facts(key, read_crt(place(config, "live", "crt")),
                     read_key(place(config, "staging", "key")),
                     read_crt(place(config, "staging", "crt")),
                     state, self.asked, self.force, self.hooks, self.skew, self.dns, self.served)


def reconcile(run):
    """Do what is due, one Step after the other. Returns the exit status.
    Raises Problem, OSError."""
    for _ in range(50):
        facts, now = run.facts(), time.time()
        step = decide(run.config, facts, now)
        if step.verb == "wait":
            return conclude(run, facts, step, now)
        if step.verb not in ("clock", "look"):
            say(step.text + (": " + step.why if step.verb in ("stage", "drop", "rename") else ""))
        perform(run, facts, step)
    raise Problem("it does not settle: %s, again and again" % step.text)


def perform(run, facts, step):
    """Do one Step. Raises Problem or OSError, which end the run."""
    config = run.config
    if step.verb == "request":
        request(run, facts, step.what)
    elif step.verb == "stage":
        run.asked = run.asked | {"stage"}
        run.force = "now" if run.force == "now" else ""
        update_state(config, published=None, seen=None, ttl=None, told=None)
        make_key(place(config, "staging", "key"), config.key_type, config.key_length,
                 os.stat(place(config, "live", "key")))
    elif step.verb == "publish":
        update_state(config, published=time.time())
    elif step.verb == "hook":
        run.asked, run.dns, run.served = run.asked | {step.what}, None, None
        run_hook(config, facts, step.what)
    elif step.verb == "look" and step.what == "dns":
        run.dns, ttl, _ = look_at_dns(config, facts)
        known = [some for some in (ttl, facts.state.get("ttl")) if some is not None]
        keys = keys_of(facts)  # what was seen of a key that is no longer there does not count
        since = facts.state.get("looked", keys) == keys and facts.state.get("seen") or (
            None if run.skew is None else time.time() + max(0, run.skew - 2))
        update_state(config, ttl=max(known, default=None), seen=None if run.dns else since,
                     looked=keys)
    elif step.verb == "look":
        end = time.monotonic() + 15
        for pause in (1, 1, 1, 1, 0):  # a service may take a moment to reload
            run.served = look_at_services(config, facts)
            if not run.served or time.monotonic() > end:
                break
            time.sleep(pause)
    elif step.verb == "clock":
        run.asked = run.asked | {"clock"}
        ask_clock(run)
    elif step.verb == "drop":
        drop(config, step.what)
    else:
        run.asked, run.force = run.asked | {"stage"}, ""
        rename(config, *("key", "crt") if step.verb == "unstage" else (step.what,))
        update_state(config, published=None, seen=None, ttl=None)  # the next key waits anew


def client_of(run):
    """The Client of this run, with the account's URL from the state if that is for the same
    account. Raises Problem, AcmeError, OSError."""
    config = run.config
    if run.client is None:
        make_account_key(config)
        run.client = Client(config.directory_url, AccountKey(config.account_key),
                            contact=config.contact, proxy=config.proxy, ca_bundle=config.ca_bundle)
        known = read_state(config, time.time()).get("account")
        if known and known == account_of(run, known["url"]):
            run.client.account = known["url"]
    return run.client


def account_of(run, url):
    """The state's entry (dict) for the account with this URL (str): what it depends on."""
    return {"directory": run.config.directory_url, "thumbprint": run.client.key.thumbprint,
            "contact": run.config.contact, "url": url}


def request(run, facts, which):
    """Request the certificate of a key (which: live or staging; RFC 8555) and install it; a failure
    is told and remembered. Raises OSError if it cannot be remembered."""
    config, file = run.config, place(run.config, which, "crt")
    old = read_state(config, time.time()).get("retry")
    key, crt = (facts.live_key, facts.live_crt) if which == "live" else facts[2:4]
    run.asked = run.asked | {key.spki}
    count = old["count"] + 1 if old and old["names"] == config.domains else 1
    retry = {"count": count, "names": config.domains, "directory": config.directory_url}
    # Written before the order, so that a program that dies at it does not order for ever
    fail(retry, OSError("the run was cut off"))
    update_state(config, retry=retry)
    solver = HttpFiles(config.challenge_dir, config.self_check,
                       note=lambda files: update_state(config, challenges=files),
                       trouble=lambda text: complain(config.file, text))
    try:
        private = place(config, which, "key")
        spki = public_key(read_file(private).decode("ascii", "replace"))
        text = client_of(run).obtain(config.domains, make_csr(
            private, spki, config.domains), spki, solver)
        leaf = parse_certificate(pem(text)[0][1])
        same = crt and (crt.spki, set(crt.names)) == (key.spki, set(leaf.names))
        if same and (leaf.not_after < crt.not_after or sha256(text.encode()) == crt.sha256):
            raise AcmeError("the CA sent the present certificate again, or one that ends earlier")
        if os.path.exists(file):
            back_up(config, file)
        write_file(file, text.encode(), 0o644)
        retry = None
    except (AcmeError, OSError) as error:
        fail(retry, error)
        run.failed, run.status = True, 1
        complain(config.file, "no certificate '%s': %s; what is there stays; if it is due, cron "
                 "tries again from %s" % (
                     getattr(config, which), reason(error), utc(retry["after"])))
    except Stopped:
        retry = old
        raise
    finally:
        compare_clocks(run)
        known = run.client and run.client.account
        try:
            update_state(config, retry=retry, challenges=solver.paths or None,
                         **{"account": account_of(run, known)} if known else {})
        except OSError:
            if not run.failed:  # one line is enough, and what was written before the order holds
                raise


def fail(retry, error):
    """Note in retry (dict, as in STATE) when the next request may be made after this error
    (AcmeError, OSError)."""
    wait = getattr(error, "retry_after", None)
    # What broke on this machine (a full disk) did not bother the CA: one try more
    count = retry["count"] if isinstance(error, AcmeError) else retry["count"] - 1
    retry.update(server=wait is not None, error=printable(reason(error)), after=time.time() + (
        RETRY_SECONDS[min(count, 4)] if wait is None else min(wait, RETRY_AFTER_SECONDS)))


def make_csr(file, spki, names):
    """A PKCS#10 request (DER bytes, RFC 2986) for names (list of str), signed by the key in file
    (path), whose public half is spki (DER bytes). Raises ToolError."""
    san = tlv(0x30, *[tlv(0x82, name.encode()) for name in names])
    extensions = tlv(0x30, tlv(0x30, tlv(6, SUBJECT_ALT_NAME), tlv(4, san)))
    attribute = tlv(0x30, tlv(6, EXTENSION_REQUEST), tlv(0x31, extensions))
    info = tlv(0x30, tlv(2, b"\0"), tlv(0x30), spki, tlv(0xa0, attribute))
    algorithm = [tlv(6, bytes.fromhex("2a864886f70d01010b")), tlv(5)]  # sha256WithRSAEncryption
    if key_kind(spki)[0] != "rsa":
        algorithm = [tlv(6, bytes.fromhex("2a8648ce3d040302"))]        # ecdsa-with-SHA256
    signature = openssl("dgst", "-sha256", "-sign", file, stdin=info)
    return tlv(0x30, info, tlv(0x30, *algorithm), tlv(3, b"\0", signature))


def ask_clock(run):
    """Ask the CA what time it is; while it cannot be reached, nobody knows."""
    try:
        client_of(run).directory("newNonce")
        run.skew = run.skew if run.client.skew is not None else 0
    except (AcmeError, OSError) as error:
        run.trouble = reason(error)
        if getattr(error, "retry_after", None) is not None:
            retry = {"count": 1, "names": run.config.domains, "directory": run.config.directory_url}
            fail(retry, error)
            update_state(run.config, retry=retry)
    compare_clocks(run)


def compare_clocks(run):
    """Take the CA's time from its last answer, and tell if the clocks are far apart."""
    skew = run.client and run.client.skew
    if run.skew is None and abs(skew or 0) > CLOCK_SECONDS:
        complain(run.config.file, "your clock is %g days %s (the CA's says %s): no key is made "
                 "or goes live before that is mended" % (
                     round(abs(skew) / DAY, 2), "behind" if skew > 0 else "ahead",
                     utc(time.time() + skew)))
    run.skew = run.skew if skew is None else skew


def run_hook(config, facts, name):
    """Run a hook (its name in the config), and note that it is done if it exits 0. Raises Problem
    otherwise, OSError if it cannot be started or noted."""
    import subprocess
    program = getattr(config, name.replace("-", "_"))
    env = {k: v for k, v in os.environ.items() if not k.startswith("STAGING_")}
    env.update(HOOK=name, CONFIG=config.file, DOMAINS=" ".join(config.domains))
    env.update({"%s_%s" % (which.upper(), ext.upper()): place(config, which, ext)
                for which in (["live", "staging"] if staged_pair(facts) else ["live"])
                for ext in ("crt", "key")})
    quiet = {name: subprocess.DEVNULL for fd, name in ((1, "stdout"), (2, "stderr")) if fd in deaf}
    # A signal before we know its process would leave the hook running
    hook, mask = None, signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        hook = subprocess.Popen(
            [program], stdin=subprocess.DEVNULL, env=env, start_new_session=True,
            preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, mask), **quiet)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        status = "exit status %d" % hook.wait(config.hook_timeout)
    except subprocess.TimeoutExpired:
        status = "killed after %g seconds" % config.hook_timeout
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if hook and hook.returncode is None:
            os.killpg(hook.pid, signal.SIGKILL)
            hook.wait()
    if hook.returncode:
        raise Problem("%s (%s) failed: %s; it runs again next time" % (name, program, status))
    if name == "post-certchange":
        update_state(config, certchange=facts.live_crt.sha256)
    else:
        known = facts.state.get("keychange") == keys_of(facts) and facts.state.get("published")
        update_state(config, keychange=keys_of(facts),
                     published=known or time.time() if staged_pair(facts) else None)


def conclude(run, facts, step, now):
    """Tell what could not be done, or waits: step is a wait. Returns the exit status. Raises
    OSError."""
    config, retry = run.config, facts.state.get("retry")
    if step.what == "request" and not run.failed:
        run.status = 1
        told = ("the last request failed (%s), the next is made from %s" % (
            retry["error"], utc(step.when)) if retry else "it was obtained just now: is the clock "
            "right, is the CA?")
        complain(config.file, "%s; %s" % (step.why, told))
    if retry and step.what != "request" and not (run.failed or retry["server"]):
        update_state(config, retry=None)  # of a run that died when it had succeeded
    if decide(config, facts._replace(skew=0 if wrong_clock(facts) else facts.skew or 0),
              now).verb != "wait":
        run.status = 1  # held back because the clock is wrong, which was said, or not known
        if run.skew is None and not run.failed:
            complain(config.file, "no key is made or goes live before the CA says what time it is: "
                     + (run.trouble or "it is not to be asked before " + utc(retry["after"])))
    if run.served:
        run.status = 1
        complain(config.file, "%s; the old key stays in DNS, the next run goes on" % "; ".join(
            run.served))
    if config.tlsa:
        tell_dns(run, facts, now)
    if run.force == "new-key" and facts.staging_key:
        say("'%s' is staged already: %s, %s" % (config.staging, step.why, utc(step.when)))
    if not run.hooks and facts.live_crt and facts.live_crt.spki == facts.live_key.spki:
        owed = hooks_owed(config, facts)
        change = owed and [facts.live_crt.sha256] + keys_of(facts) + owed
        if owed and facts.state.get("owed") != change:
            say("Owed: %s (run with -k)" % ", ".join(owed))
        update_state(config, owed=change or None)
    return run.status


def tell_dns(run, facts, now):
    """Tell a staging time that is too short, and once a day what a staged key waits for."""
    config, step = run.config, unstage_step(run.config, facts, now)
    ttl = facts.state.get("ttl", 0)
    if run.force == "init" or facts.staging_key and "stage" in run.asked:
        ttl = ttl or look_at_dns(config, facts)[1] or 0
        if 2 * ttl > config.staging_hours * HOUR:
            say("staging-hours is less than twice the TTL of the TLSA records: a new key waits for "
                "%d seconds" % (2 * ttl))
    if run.hooks and step[:2] == ("wait", "dns") and (
            now >= facts.state.get("told", 0) + DAY - HOUR):
        say("%s, %s" % (step.why, "to be tried again" if run.dns else utc(step.when)))
        update_state(config, told=now)
        since = facts.state.get("published", facts.staging_key.made)
        if run.dns and now > since + max(HOUR, 2 * ttl):
            run.status = 1


# ---- Commands -----------------------------------------------------------------------------------


def check_machine(config, hooks, folders, make):
    """Raise Problem unless openssl, the folders (paths; if init will make them, what is there of
    them) and the hooks (if they may run) can be used."""
    if not any(os.access(os.path.join(folder, "openssl"), os.X_OK)
               for folder in os.environ["PATH"].split(":")):
        raise Problem("there is no openssl in PATH: install it")
    for hook in (config.post_certchange, config.post_keychange) if hooks else ():
        if hook and not (os.path.isfile(hook) and os.access(hook, os.X_OK)):
            raise Problem("the hook %s is missing, or no program that can be run (chmod +x)" % hook)
        if hook:
            check_owner(hook)
    if config.ca_bundle and not os.access(config.ca_bundle, os.R_OK):
        raise Problem("ca-bundle %s cannot be read" % config.ca_bundle)
    for folder in folders:
        while make and not os.path.lexists(folder):
            folder = os.path.dirname(folder)
        if not os.path.isdir(folder) or not os.access(folder, os.W_OK | os.X_OK):
            raise Problem("%s is no folder that can be written to: run init, or mend it" % folder)


def act(config, hooks, force):
    """init, renew and cron. hooks, force: as in Facts. Returns the exit status. Raises Problem,
    OSError."""
    folders = {os.path.dirname(config.account_key): 0o700, config.certs: 0o755, config.keys: 0o710,
               config.backups: 0o700, config.challenge_dir: 0o755}
    check_machine(config, hooks, folders, force == "init")
    for folder, mode in folders.items() if force == "init" else ():
        make_folder(folder, mode)
    fd = lock(place(config, "live", "lock"))
    try:
        clean_up(config)
        live = place(config, "live", "key")
        if force == "init" and not os.path.lexists(live):
            make_account_key(config)
            say("Making private key '%s' (%s)" % (config.live, config.key_type))
            make_key(live, config.key_type, config.key_length)
        return reconcile(Run(config, hooks, force))
    finally:
        os.close(fd)


def show(config, hooks, force):
    """Tell what cron or renew would do first, and why. Returns the exit status. Raises Problem,
    OSError."""
    step = decide(config, Run(config, hooks, force, 0).facts()._replace(served=[]), time.time())
    say("%s: %s" % (step.text, step.why) if step.verb != "wait" else
        "Nothing; next: %s, %s" % (step.why, utc(step.when)))
    return 0


def status(config):
    """Tell what is there and what comes next. Returns 1 if something is overdue or failed, else 0.
    Raises Problem, OSError."""
    facts, now = Run(config, True, "", 0).facts(), time.time()
    facts = facts._replace(served=[], dns=["it was not seen in DNS yet"] if (
        config.tlsa and "seen" not in facts.state) else [])
    step, retry = decide(config, facts, now), facts.state.get("retry")
    lines, crt = ["%s: %s" % (config.file, " ".join(config.domains))], facts.live_crt
    for name, key, some in ((config.live, facts.live_key, crt),
                            (config.staging, facts.staging_key, facts.staging_crt)):
        if key:
            lines.append("'%s' key: %s, %d bits, made %s (%d days ago), public key SHA-256 %s" % (
                name, key.kind, key.bits, utc(key.made), (now - key.made) / DAY, key.spki))
            lines.append("'%s' certificate: %s" % (name, "until %s (%d days), for %s" % (
                utc(some.not_after), (some.not_after - now) // DAY, " ".join(some.names))
                if some and some.spki == key.spki else "none for this key"))
    for name, what in ("published", "published"), ("seen", "seen in DNS"):
        if facts.staging_key and name in facts.state:
            lines.append("'%s' is %s since %s" % (config.staging, what, utc(facts.state[name])))
    owed = hooks_owed(config, facts) if crt else []
    if owed:
        lines.append("hooks owed: %s" % ", ".join(owed))
    if retry:
        lines.append("last failure: %s; next request from %s" % (
            retry["error"], utc(retry["after"])))
    lines.append("next: %s, %s" % (step.why, utc(step.when)) if step.verb == "wait" else
                 "next: %s: %s" % (step.text, step.why))
    say("\n  ".join(lines))
    # What cron will do tonight is not yet overdue
    grace = min(1.5 * DAY, (crt.not_after - crt.not_before) / 10) if crt else 0
    late = step.what == "request" if step.verb == "wait" else now - step.when > grace
    return 1 if retry or owed or late else 0


def tlsa(config, flags, ttl):
    """Tell the records that DNS must hold now with a TTL (seconds), as lines of a zone file; flags
    (set of str): --json, --nsupdate, or --check whether it does. Returns the exit status."""
    facts = Run(config).facts()
    if not config.tlsa:
        raise Problem("tlsa is not set: it names the records, such as _25._tcp.mx.example.org", 2)
    names = list(dict.fromkeys(name.rstrip(".").lower() + "." for name in config.tlsa))
    records = [(name, key) for name in names for key in keys_of(facts) if key]
    if "--check" in flags:
        problems, found, stale = look_at_dns(config, facts)
        problems += ["%s fits no key of this line" % record for record in stale]
        if found and 2 * found > config.staging_hours * HOUR:
            problems.append("the records' TTL is %d s: a new key waits for twice that, longer than "
                            "staging-hours" % found)
        say("\n".join(problems) or "DNS holds what it must")
        return 1 if problems else 0
    lines = ["%s %d IN TLSA 3 1 1 %s" % (name, ttl, key) for name, key in records]
    if "--nsupdate" in flags:
        lines = [line for name in names for line in [  # one at a time: they may be of several zones
            "update delete %s TLSA" % name, *["update add %s %d TLSA 3 1 1 %s" % (name, ttl, key)
                                              for other, key in records if other == name], "send"]]
    if "--json" in flags:
        lines = [json.dumps([{"name": name, "ttl": ttl, "usage": 3, "selector": 1,
                              "matching_type": 1, "data": key} for name, key in records])]
    say("\n".join(lines))
    return int(1 in deaf)  # a hook must not take half of them for all


def run_line(file, command, flags, force, ttl):
    """Do the command (str) for the line of a config file (path). flags: the options given (set of
    str); force: as in Facts; ttl: seconds. Returns the exit status."""
    try:
        file = os.path.abspath(file)
        config = read_config(file)
        check_owner(file)
        if command == "tlsa":
            return tlsa(config, flags, ttl)
        if command == "status":
            return status(config)
        return (show if "--dry-run" in flags else act)(config, "--hooks" in flags, force)
    except (Problem, OSError) as error:
        complain(file, reason(error))
        return getattr(error, "status", 1)


def stop(number, _):
    """Signal handler: end in order, and only once."""
    for other in SIGNALS:
        signal.signal(other, signal.SIG_IGN)
    raise Stopped(number)


def prepare():
    """Make whatever cron, ssh and broken shells leave us in safe to work in."""
    import resource
    fd = 0
    while fd < 3:  # no file of ours may become descriptor 0, 1 or 2
        fd = os.open(os.devnull, os.O_RDWR)
        os.set_inheritable(fd, fd < 3)
    os.close(fd)
    os.environ.setdefault("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if it is ignored, whatever we run "exits 0"
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, stop)


def main(argv=None):
    """The command line. argv: list of str. Returns the exit status (int)."""
    try:
        given, words = getopt.gnu_getopt(sys.argv[1:] if argv is None else argv, "c:knh", [
            "config=", "hooks", "dry-run", "new-key", "now", "json", "nsupdate", "check", "ttl=",
            "version", "help"])
        short = {"-c": "--config", "-k": "--hooks", "-n": "--dry-run", "-h": "--help"}
        given = [(short.get(option, option), value) for option, value in given]
        ttl = number(1, 2**31 - 1, int)(dict(given).get("--ttl", "3600"))
    except (getopt.GetoptError, ValueError) as error:
        emit(2, "letsencrypt-tiny: %s; see --help" % error)
        return 2
    files, flags = [v for k, v in given if k == "--config"], {k for k, _ in given}
    if "--help" in flags:
        say(__doc__.strip())
        return 0
    if "--version" in flags:
        say("letsencrypt-tiny %s, SHA-256 %s" % (__version__, sha256(read_file(__file__))))
        return 0
    command, forms = words[0] if len(words) == 1 else "", {"--json", "--nsupdate", "--check"}
    fits = {"init": set(), "renew": {"--new-key", "--now", "--dry-run"}, "cron": {"--dry-run"},
            "status": set(), "tlsa": forms | {"--ttl"}}
    if (not files or command not in fits or flags - {"--config", "--hooks"} - fits[command]
            or "--now" in flags and "--new-key" not in flags or len(flags & forms) > 1):
        emit(2, "letsencrypt-tiny: give -c CONFIG and one of %s, with its options; see --help" % (
            ", ".join(fits)))
        return 2
    force = "now" if "--now" in flags else "new-key" if "--new-key" in flags else (
        command if command in ("init", "renew") else "")
    try:
        prepare()
        return max([run_line(file, command, flags, force, ttl) for file in files])
    except Stopped as stopped:
        emit(2, "letsencrypt-tiny: ended by %s; the next run goes on" % (
            signal.Signals(stopped.args[0]).name))
        return 128 + stopped.args[0]


if __name__ == "__main__":
    sys.exit(main())
