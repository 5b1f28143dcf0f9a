#!/usr/bin/env python3
"""A certificate line's life in half a minute: python3 examples/demo.py

It needs no root and no network: the CA, the web server and the name server run here, and all files
are in a temporary folder. The program is the real one, built as for a server, and is run as an
administrator or cron would run it.
"""
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
from tests.world.fake_ca import FakeCA  # noqa: E402
from tests.world.fake_dns import FakeDNS  # noqa: E402
from tests.world.support import Web, spki  # noqa: E402

WIDTH = 96
STAGING_SECONDS = 4
CONFIG = """\
domains = mx.example.org www.example.org
max-key-age-days = 256
staging-hours = {hours}
tlsa = _25._tcp.mx.example.org
dns-resolver = {name_server}
dns-servers = {name_server}
post-certchange = {folder}/cert-hook
post-keychange = {folder}/key-hook
account-key = {folder}/account.key
challenge-dir = {folder}/challenges
certs = {folder}/certs
keys = {folder}/keys
backups = {folder}/backups
directory-url = {directory_url}
ca-bundle = {bundle}
self-check = no
"""
# A service that loads the live files, and tells the demo which key it got.
CERT_HOOK = """\
#!/bin/sh
set -eu
cp "$LIVE_CRT" {folder}/service.crt
echo "  (the mail server loads the live key and certificate)"
"""
# As examples/key-hooks/bind-include, but sometimes it lies.
KEY_HOOK = """\
#!/bin/sh
set -eu
echo "  (new TLSA records for the name server)"
if [ -e {folder}/broken ]; then exit 0; fi
{python} -IS {folder}/letsencrypt-tiny -c "$CONFIG" tlsa --ttl 1 > {folder}/zone.tmp
mv {folder}/zone.tmp {folder}/zone
"""


def colour(code, text):
    return "\033[%sm%s\033[0m" % (code, text) if sys.stdout.isatty() else text


class Demo:
    def __init__(self, folder):
        self.folder = folder
        self.names = {}    # digest of a public key -> A, B, ...
        self.history = []  # a dict for every step: title, and who has which keys
        self.before = {}

    def path(self, *parts):
        return os.path.join(self.folder, *parts)

    def write(self, name, text, mode=0o644):
        with open(self.path(name), "w") as file:
            file.write(text.format(folder=self.folder, python=sys.executable))
        os.chmod(self.path(name), mode)

    # -- what is there

    def key(self, name):
        """The letter of the key in a key or certificate file, "" if there is no such file."""
        return self.letter(spki(self.path(name))) if os.path.exists(self.path(name)) else ""

    def letter(self, digest):
        return self.names.setdefault(digest, chr(ord("A") + len(self.names)))

    def zone(self):
        """The name server's zone file, which the key hook writes."""
        if not os.path.exists(self.path("zone")):
            return ""
        with open(self.path("zone")) as file:
            return file.read()

    def published(self):
        """The digests in its TLSA records."""
        return [line.split()[-1] for line in self.zone().splitlines()]

    def snapshot(self):
        """All files of the line: path -> (inode, mode, letter of the key in it)."""
        found = {}
        for name in "certs", "keys", "backups":
            for entry in os.scandir(self.path(name)) if os.path.isdir(self.path(name)) else ():
                if entry.name.endswith((".state", ".lock")):
                    continue
                info = entry.stat()
                path = os.path.join(name, entry.name)
                found[path] = info.st_ino, info.st_mode & 0o7777, self.key(path)
        return found

    # -- what a step shows

    def title(self, text, *notes):
        self.history.append({"title": text})
        print("\n" + colour("1;7", " %d. %s " % (len(self.history), text)))
        for note in notes:
            print(textwrap.fill(note, WIDTH))

    def run(self, arguments, status=0):
        """Run the program, show the command and what it printed, and demand its exit status."""
        print(colour("1", "\n$ letsencrypt-tiny -c line.conf %s" % arguments))
        done = subprocess.run(
            [sys.executable, "-IS", self.path("letsencrypt-tiny"), "-c", "line.conf"]
            + arguments.split(), cwd=self.folder, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True)
        for line in done.stdout.replace(self.folder + "/", "").splitlines():
            print("\n".join(textwrap.wrap(line, WIDTH, subsequent_indent=" " * 6)))
        notes = ["nothing printed"] if not done.stdout else []
        notes += ["exit status %d" % done.returncode] if done.returncode or notes else []
        if notes:
            print(colour("2", "(%s)" % ", ".join(notes)))
        if done.returncode != status:
            sys.exit("demo: exit status %d was expected" % status)

    def changes(self):
        """Show what the step changed on disk and what DNS holds, and note both for the end."""
        now = self.snapshot()
        for path in sorted(set(now) | set(self.before)):
            old, new = self.before.get(path), now.get(path)
            if old != new:
                sign = "-" if not new else "~" if old else "+"
                shade = {"-": "31", "~": "33", "+": "32"}[sign]
                mode, letter = (new or old)[1:]
                print(colour(shade, "  %s %-37s %04o  key %s" % (sign, path, mode, letter)))
        self.before = now
        print("  DNS: " + ("\n       ".join(
            "_25._tcp.mx.example.org. TLSA 3 1 1 %s...   key %s" % (digest[:16],
                                                                  self.letter(digest))
            for digest in self.published()) or "no TLSA records"))
        self.history[-1].update(
            live=self.key("keys/live.key"), staged=self.key("keys/staging.key"),
            dns="".join(sorted(map(self.letter, self.published()))),
            service=self.key("service.crt"))

    def timeline(self):
        """Who had which key, step by step. Returns whether DNS always held the service's key."""
        print("\n" + colour("1;7", " What happened "))
        print("\n    %-46s %-6s %-8s %-8s %s" % ("step", "live", "staged", "in DNS", "in use"))
        fine = True
        for number, step in enumerate(self.history, 1):
            good = step["service"] in step["dns"]
            fine = fine and good
            print("%3d %-46s %-6s %-8s %-8s %s%s" % (
                number, step["title"], step["live"], step["staged"] or "-",
                " ".join(step["dns"]), step["service"], "" if good else "  <- not in DNS!"))
        print("\n  step          " + "     ".join(
            "%d" % (number + 1) for number in range(len(self.history))))
        for letter in sorted(self.names.values()):
            for role, mark in ("staged", "."), ("live", "#"), ("dns", "="), ("service", "+"):
                bar = "".join((mark if letter in step[role] else " ") * 6
                              for step in self.history)
                if bar.strip():
                    print(colour("32" if letter == "A" else "36", "  key %s %-7s %s" % (
                        letter, {"dns": "in DNS", "service": "in use"}.get(role, role),
                        bar.rstrip())))
        print("\n  " + ("At every step the key in use was in DNS." if fine else
                        "A key was in use that was not in DNS!"))
        return fine


def play(demo):
    demo.title("init", "The keys of the account and of the line, the first certificate, and the "
               "hooks: one loads the certificate into the services, the other one publishes the "
               "key in DNS. From now on, services and DNS are right.")
    demo.run("-k init")
    demo.changes()

    demo.title("cron: nothing is due", "This is nearly every run: no request, no output, no mail.")
    demo.run("-k cron")
    demo.changes()

    demo.title("renew: a new certificate, the same key", "So the TLSA record stays as it is.")
    demo.run("-k renew")
    demo.changes()

    demo.title("a domain more", "The config is edited; the next run sees that the certificate "
               "lacks a name.")
    with open(demo.path("line.conf")) as file:
        config = file.read()
    with open(demo.path("line.conf"), "w") as file:
        file.write(config.replace("www.example.org", "www.example.org imap.example.org"))
    demo.run("-k cron")
    demo.changes()

    demo.title("the key grows old; the DNS hook lies", "300 days pass (the age of a key is its "
               "file's time). A new key is made and gets its certificate. But the hook that "
               "should publish it says that it did, and did not. The program looks for itself: "
               "services keep the old key, and the staging time does not begin.")
    then = time.time() - 300 * 86400
    os.utime(demo.path("keys", "live.key"), (then, then))
    demo.write("broken", "")
    demo.run("-k cron")
    demo.changes()

    demo.title("the next run publishes the staged key", "The hook is repaired. What is owed is "
               "done, nothing else is done twice, and the staging time begins.")
    os.unlink(demo.path("broken"))
    demo.run("-k cron")
    published = time.time()
    demo.run("tlsa --check")
    demo.changes()

    demo.title("cron: the staged key waits", "Caches may hold the old records, so services keep "
               "the old key: for 24 hours or so on a server, for %d seconds here." %
               STAGING_SECONDS)
    demo.run("-k cron")
    demo.changes()

    demo.title("the staged key goes live", "Services get it first; the old record goes last.")
    time.sleep(max(0, published + STAGING_SECONDS + 0.1 - time.time()))
    demo.run("-k cron")
    demo.changes()

    demo.title("cron: nothing is due", "The old key and certificate are in the backups.")
    demo.run("-k cron")
    demo.run("status")
    demo.changes()


def main():
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if not shutil.which("openssl"):
        sys.exit("demo: openssl is not in PATH")
    start = time.time()
    with tempfile.TemporaryDirectory(prefix="letsencrypt-tiny-") as folder:
        demo = Demo(folder)
        os.mkdir(demo.path("challenges"))
        with open(demo.path("letsencrypt-tiny"), "wb") as file:
            subprocess.run([sys.executable, os.path.join(ROOT, "examples", "single-file"), ROOT],
                           stdout=file, check=True)
        demo.write("cert-hook", CERT_HOOK, 0o755)
        demo.write("key-hook", KEY_HOOK, 0o755)
        with Web(demo.path("challenges")) as web, FakeCA(http_port=web.port) as ca, \
                FakeDNS(demo.zone, aa=True) as dns:
            demo.write("line.conf", CONFIG.format(
                folder=folder, hours="%.6f" % (STAGING_SECONDS / 3600),
                name_server=dns.address,
                directory_url=ca.directory_url, bundle=ca.bundle))
            play(demo)
    fine = demo.timeline()
    print("  That took %.0f seconds; %s is gone again." % (time.time() - start, folder))
    return 0 if fine else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
