"""The examples do what they say: hooks, sample config, demo; and the README knows all options."""
import ast
import glob
import os
import re
import stat
import subprocess
import sys
import tempfile
import unittest

from tests.support import PATIENCE, PROGRAM, openssl

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
EXAMPLES = os.path.join(ROOT, "examples")
HOOKS = sorted(glob.glob(os.path.join(EXAMPLES, "*-hook"))
               + glob.glob(os.path.join(EXAMPLES, "key-hooks", "*")))
A, B = "a" * 64, "b" * 64


def read(*parts):
    with open(os.path.join(ROOT, *parts), encoding="utf-8") as file:
        return file.read()


class Folder(unittest.TestCase):
    """A temporary folder with stubs in bin/, which come first in the hooks' PATH."""

    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = temporary.name
        os.mkdir(self.path("bin"))

    def path(self, *parts):
        return os.path.join(self.folder, *parts)

    def write(self, name, text, mode=0o644):
        with open(self.path(name), "w") as file:
            file.write(text)
        os.chmod(self.path(name), mode)

    def text(self, name):
        with open(self.path(name)) as file:
            return file.read()

    def stub(self, name, body):
        """A command that logs its arguments and standard input and then runs `body` (sh)."""
        self.write(os.path.join("bin", name), "#!/bin/sh\necho \"%s $*\" >> %s\n%s\n" % (
            name, self.path("log"), body), 0o755)

    def log(self):
        """What stubs were called with since the last call."""
        lines = self.text("log").splitlines() if os.path.exists(self.path("log")) else []
        self.write("log", "")
        return lines

    def run_hook(self, path, status=0, **environment):
        done = subprocess.run(
            [path], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            universal_newlines=True,
            env=dict({"PATH": self.path("bin") + ":/usr/bin:/bin", "CONFIG": "/etc/line.conf"},
                     **environment))
        self.assertEqual(done.returncode, status, done.stdout + done.stderr)
        return done.stderr


class Hooks(unittest.TestCase):
    def test_all_are_there_and_can_be_run(self):
        self.assertGreaterEqual(len(HOOKS), 6)
        for path in HOOKS:
            with self.subTest(os.path.basename(path)):
                self.assertTrue(os.access(path, os.X_OK))
                text = read(path)
                self.assertTrue(text.startswith("#!/bin/sh\n"))
                self.assertRegex(text, r"(?m)^set -eu$")
                subprocess.run(["sh", "-n", path], check=True)

    def test_key_hooks_are_short(self):
        for path in HOOKS:
            if not path.endswith("cert-hook"):
                self.assertLess(read(path).count("\n"), 40, path)


class CertHook(Folder):
    HOOK = os.path.join(EXAMPLES, "cert-hook")

    def setUp(self):
        super().setUp()
        for name in "ca", "leaf":
            openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
                    "-nodes", "-subj", "/CN=" + name, "-keyout", self.path(name + ".key"),
                    "-out", self.path(name + ".pem"))
        os.mkdir(self.path("certs"))
        os.mkdir(self.path("keys"))
        self.write("certs/live.crt", self.text("leaf.pem") + self.text("ca.pem"))
        self.write("keys/live.key", self.text("leaf.key"), 0o640)
        self.stub("systemctl", 'case "$*" in *nginx) exit 3 ;; *dovecot) exit 4 ;; esac')

    def hook(self, status=0):
        return self.run_hook(self.HOOK, status, LIVE_CRT=self.path("certs/live.crt"),
                             LIVE_KEY=self.path("keys/live.key"))

    def mode(self, name):
        return stat.S_IMODE(os.stat(self.path(name)).st_mode)

    def test_makes_files_and_reloads_what_runs(self):
        for _ in range(2):
            self.hook()
            leaf, ca = self.text("leaf.pem"), self.text("ca.pem")
            self.assertEqual(self.text("certs/live.chain"), ca)
            self.assertEqual(self.text("certs/live.crt+chain"), leaf + ca)
            self.assertEqual(self.text("keys/live.pem"), self.text("leaf.key") + leaf + ca)
            self.assertEqual(self.mode("certs/live.chain"), 0o644)
            self.assertEqual(self.mode("keys/live.pem"), 0o640)  # as the key's
            found = os.listdir(self.path("certs")) + os.listdir(self.path("keys"))
            self.assertEqual([name for name in found if name.endswith(".tmp")], [])
            reloaded = [line.split()[-1] for line in self.log() if "reload" in line]
            self.assertIn("postfix", reloaded)
            self.assertNotIn("nginx", reloaded)
            self.assertNotIn("dovecot", reloaded)

    def test_dh_parameters(self):
        text = read(self.HOOK).replace("/etc/ssl/dhparam.pem", self.path("dh.pem"))
        self.write("hook", text, 0o755)
        self.HOOK = self.path("hook")
        self.hook()
        self.assertFalse(os.path.exists(self.path("certs/live.crt+dh")))
        self.write("dh.pem", "parameters\n")
        self.hook()
        self.assertEqual(self.text("certs/live.crt+dh"),
                         self.text("certs/live.crt") + "parameters\n")

    def test_a_certificate_without_chain_leaves_the_old_chain(self):
        self.hook()
        self.write("certs/live.crt", self.text("leaf.pem"))
        self.hook()
        self.assertEqual(self.text("certs/live.chain"), self.text("ca.pem"))

    def test_a_failed_reload_fails_but_the_others_are_done(self):
        self.stub("systemctl", '! [ "$*" = "reload-or-restart apache2" ]')
        self.assertIn("not reloaded: apache2\n", self.hook(status=1))
        self.assertIn("systemctl reload-or-restart haproxy", self.log())

    def test_systemd_that_does_not_answer_is_no_success(self):
        self.stub("systemctl", "exit 1")
        self.assertIn("not reloaded: apache2", self.hook(status=1))

    def test_what_is_no_certificate_is_not_spread(self):
        self.write("certs/live.crt", "")
        self.hook(status=1)
        self.assertEqual(os.listdir(self.path("certs")), ["live.crt"])


class KeyHooks(Folder):
    """With stubs in the place of name servers."""
    ZONE = ("$ORIGIN example.org.\n@ IN SOA ns hostmaster (\n    2026112399 ; serial\n"
            "    3600 600 86400 300 )\n")

    def setUp(self):
        super().setUp()
        self.records(A, B)

    def records(self, *digests):
        names = "_25._tcp.mx.example.org.", "_443._tcp.www.example.org."
        zone = "".join("%s 3600 IN TLSA 3 1 1 %s\n" % (name, digest)
                       for name in names for digest in digests)
        update = "".join(["update delete %s TLSA\n" % name + "".join(
            "update add %s 3600 TLSA 3 1 1 %s\n" % (name, digest) for digest in digests)
            for name in names] + ["send\n"])
        self.write("zone-lines", zone)
        self.write("update", update)
        self.stub("letsencrypt-tiny", '[ "$1 $2 $3" = "-c /etc/line.conf tlsa" ] || exit 9\n'
                  'if [ "${4-}" = --nsupdate ]; then cat %s; else cat %s; fi' % (
                      self.path("update"), self.path("zone-lines")))

    def hook(self, name, *changes):
        """The path of a copy of a hook in which strings are replaced."""
        text = read("examples", name)
        for old, new in changes:
            self.assertIn(old, text)
            text = text.replace(old, new)
        self.write("hook", text, 0o755)
        return self.path("hook")

    def adapted(self):
        """All key hooks, with the paths of this test."""
        yield self.hook("key-hook")
        for path in HOOKS:
            if "key-hooks" in path:
                name = os.path.basename(path)
                where = {"bind-include": "/var/lib/bind", "nsd-ldns": "/etc/nsd"}.get(name)
                yield self.hook("key-hooks/" + name,
                                *([(where, self.folder)] if where else []))

    def test_no_records_or_no_program_are_errors_and_change_nothing(self):
        for stub, status in ("exit 1", 1), ("exit 0", 1), ("echo; exit 0", 1):
            for hook in self.adapted():
                for name in "nsupdate", "knotc", "rndc", "curl", "ldns-signzone", "nsd-control":
                    self.stub(name, "")
                self.stub("letsencrypt-tiny", stub)
                self.log()
                before = sorted(os.listdir(self.folder))
                with self.subTest(read(hook).splitlines()[1], stub=stub):
                    self.run_hook(hook, status)
                    self.assertEqual([line.split()[0] for line in self.log()],
                                     ["letsencrypt-tiny"])
                    self.assertEqual(sorted(os.listdir(self.folder)), before)

    def test_nsupdate(self):
        for name, arguments in ("key-hook", "-l"), ("key-hooks/bind-nsupdate", "-v -k"):
            hook = self.hook(name)
            self.stub("nsupdate", "cat > " + self.path("got"))
            self.run_hook(hook)
            self.assertIn("nsupdate " + arguments, self.log()[1])
            got = self.text("got")
            self.assertTrue(got.endswith(self.text("update")), got)
            self.stub("nsupdate", "cat > /dev/null; exit 2")
            self.run_hook(hook, 2)
            self.log()

    def test_bind_include(self):
        hook = self.hook("key-hooks/bind-include", ("/var/lib/bind", self.folder))
        self.write("example.org.zone", self.ZONE, 0o640)
        self.stub("rndc", "")
        self.stub("named-checkzone", "")
        for serial in "2026112400", "2026112400":  # once for the new records, then never again
            self.run_hook(hook)
            self.assertEqual(self.text("example.org.tlsa"), self.text("zone-lines"))
            self.assertEqual(self.text("example.org.zone"),
                             self.ZONE.replace("2026112399", serial))
            self.assertIn("rndc reload example.org", self.log())
        self.assertEqual(stat.S_IMODE(os.stat(self.path("example.org.zone")).st_mode), 0o640)
        self.stub("named-checkzone", "echo broken; exit 1")
        self.assertIn("broken", self.run_hook(hook, 1))
        self.write("example.org.zone", self.ZONE.replace("; serial", ""))
        self.records(B)
        self.run_hook(hook, 1)
        self.assertNotEqual(self.text("example.org.tlsa"), self.text("zone-lines"))

    def test_knot(self):
        hook = self.hook("key-hooks/knot")
        self.stub("knotc", '[ "$*" != "zone-get example.org _443._tcp.www.example.org. TLSA" ]')
        self.run_hook(hook)
        expected = ["zone-abort example.org", "zone-begin example.org"]
        expected += ["zone-%s example.org _25._tcp.mx.example.org. TLSA" % do
                     for do in ("get", "unset")]
        expected += ["zone-get example.org _443._tcp.www.example.org. TLSA"]
        expected += ["zone-set example.org %s 3600 TLSA 3 1 1 %s" % (name, digest)
                     for name in ("_25._tcp.mx.example.org.", "_443._tcp.www.example.org.")
                     for digest in (A, B)]
        self.assertEqual(self.log()[1:], ["knotc " + line for line in
                                          expected + ["zone-commit example.org"]])
        self.stub("knotc", 'case $1 in zone-set) echo "no, thanks"; exit 1 ;; esac')
        self.assertIn("no, thanks", self.run_hook(hook, 1))
        self.assertEqual(self.log()[-1], "knotc zone-abort example.org")

    def test_nsd_ldns(self):
        hook = self.hook("key-hooks/nsd-ldns", ("/etc/nsd", self.folder))
        self.write("example.org.zone", self.ZONE.rstrip("\n"))
        self.stub("ldns-signzone", 'while [ "$1" != -f ]; do shift; done; cp "$3" "$2"')
        self.stub("nsd-checkzone", "")
        self.stub("nsd-control", "")
        self.run_hook(hook)
        self.assertEqual(self.text("example.org.zone.signed"),
                         self.ZONE + self.text("zone-lines"))
        self.assertEqual(self.log()[-1], "nsd-control reload example.org")
        self.stub("ldns-signzone", "exit 1")
        self.records(B)
        self.run_hook(hook, 1)
        self.assertNotIn("nsd-control", " ".join(self.log()))
        self.assertIn(A, self.text("example.org.zone.signed"))

    def test_powerdns(self):
        import json
        hook = self.hook("key-hooks/powerdns")
        self.stub("curl", "cat > " + self.path("got"))
        self.run_hook(hook)
        sets = {row.pop("name"): row for row in json.loads(self.text("got"))["rrsets"]}
        self.assertEqual(sorted(sets), ["_25._tcp.mx.example.org.", "_443._tcp.www.example.org."])
        for row in sets.values():
            self.assertEqual(row, {
                "type": "TLSA", "ttl": 3600, "changetype": "REPLACE",
                "records": [{"content": "3 1 1 " + digest, "disabled": False}
                            for digest in (A, B)]})
        self.stub("curl", "exit 22")
        self.run_hook(hook, 22)


class Sample(Folder):
    TEXT = read("examples", "letsencrypt.conf")

    def status(self, text):
        """Exit status and stderr of `status` with a config."""
        self.write("line.conf", re.sub(r"(?m)(= *)/", r"\1%s/" % self.folder, text))
        done = subprocess.run(PROGRAM + ["-c", self.path("line.conf"), "status"],
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, universal_newlines=True)
        return done.returncode, done.stderr

    def test_is_accepted_as_it_stands(self):
        code, errors = self.status(self.TEXT)
        self.assertEqual(code, 1, errors)  # 2 would be a config error
        self.assertIn("init", errors)

    def test_each_option_that_is_commented_out_is_accepted(self):
        options = re.findall(r"(?m)^#(\S+ = .*)$", self.TEXT)
        self.assertGreater(len(options), 15)
        for option in options:
            with self.subTest(option):
                # key-length is for RSA keys
                also = "key-type = rsa\n" if option.startswith("key-length") else ""
                self.assertEqual(self.status(also + option + "\n" + self.TEXT)[0], 1)
                wrong = re.sub(r"^(\S)", r"\1x", option)
                self.assertEqual(self.status(wrong + "\n" + self.TEXT)[0], 2)

    def test_it_has_all_options_and_their_defaults(self):
        options = program_options()
        sample = dict(re.findall(r"(?m)^#?([a-z-]+) =(.*)$", self.TEXT))
        self.assertEqual(sorted(sample), sorted(options))
        for key, default in options.items():
            if isinstance(default, str):
                self.assertEqual(sample[key].strip(), default, key)
            elif isinstance(default, float) and "#%s = " % key in self.TEXT:
                self.assertEqual(float(sample[key]), default, key)


class Readme(unittest.TestCase):
    TEXT = read("README.md")

    def test_options_table_is_the_program_s(self):
        table = self.TEXT.split("| option |")[1].split("\n\n")[0]
        names = re.findall(r"`([a-z-]+)`", "".join(
            line.split("|")[1] for line in table.splitlines()[2:]))
        self.assertEqual(sorted(names), sorted(program_options()))

    def test_messages_that_it_quotes_are_the_program_s(self):
        source = "\n".join(node.value for node in ast.walk(ast.parse(read("letsencrypt_tiny.py")))
                           if isinstance(node, ast.Constant) and isinstance(node.value, str))
        # 3 1 1 and 'staging' are what the placeholders of one message stand for.
        table = self.TEXT.split("| what goes wrong in practice |")[1].split("\n\n")[0]
        quotes = re.findall('"(.+?)"', table)
        self.assertGreater(len(quotes), 8)
        for quote in quotes:
            quote = quote.replace("3 1 1", "%d %d %d").replace("'staging'", "'%s'")
            self.assertIn(quote, source)

    def test_files_that_it_names_are_there(self):
        for path in re.findall(r"\]\(([^)#]+)\)", self.TEXT):
            if "://" not in path:
                self.assertTrue(os.path.exists(os.path.join(ROOT, path)), path)

    def test_size_that_it_claims(self):
        claimed = int(re.search(r"([\d,]+) lines of code", self.TEXT).group(1).replace(",", ""))
        from tests import test_style
        self.assertEqual(claimed, test_style.CODE_LINES)


class Demo(unittest.TestCase):
    def test_demo(self):
        done = subprocess.run([sys.executable, os.path.join(EXAMPLES, "demo.py")],
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, universal_newlines=True, timeout=PATIENCE)
        self.assertEqual((done.returncode, done.stderr), (0, ""), done.stdout)
        for fact in ("$ letsencrypt-tiny -c line.conf -k init", "(nothing printed, exit status 0)",
                     "Obtaining certificate 'live' for mx.example.org, www.example.org, "
                     "imap.example.org", "Obtaining certificate 'staging'",
                     "no 3 1 1 record for 'staging'", "DNS holds what it must",
                     "At every step the key in use was in DNS."):
            self.assertIn(fact, done.stdout)
        self.assertRegex(done.stdout, r"(?m)^  6 the next run publishes .* A +B +A B +A$")
        self.assertRegex(done.stdout, r"(?m)^  8 the staged key goes live +B +- +B +B$")
        self.assertLessEqual(max(map(len, done.stdout.splitlines())), 100)
        self.assertNotIn("\033", done.stdout)
        folder = re.search(r"(\S+) is gone again", done.stdout).group(1)
        self.assertFalse(os.path.exists(folder))


def program_options():
    """The program's own table: option -> default."""
    import letsencrypt_tiny
    return {row[0]: row[1] for row in letsencrypt_tiny.OPTIONS}


if __name__ == "__main__":
    unittest.main()
