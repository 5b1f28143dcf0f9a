"""run-as: what talks to the network has the rights of a user who can do nothing, and who owns that
process can do nothing either."""
import io
import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
import time
import unittest

from letsencrypt_tiny import AcmeError, Pipe
from tests.program.test_first_hour import HOSTS
from tests.world.case import Case as AnyCase, traces
from tests.world.fake_dns import FakeDNS
from tests.world.line import CERTCHANGE, HOUR
from tests.world.support import (
    PATIENCE, PROGRAM, free_port, only_if, pair_matches, read, spki, wait_for, write)

ROOT = os.geteuid() == 0
CAN_CHANGE = ROOT and subprocess.run(
    [PROGRAM[0], '-IS', '-c', 'import os; os.setuid(65534); import ssl; open(%r)' % PROGRAM[-1]],
    stderr=subprocess.DEVNULL).returncode == 0
# Somebody else, if there is anybody who can use this Python.
USER = 'nobody' if CAN_CHANGE else pwd.getpwuid(os.geteuid()).pw_name

# What an attacker does who owns the process: each deed is told, and what came of it.
ATTACK = r'''
    drop_rights(user)
    import socket
    pipe = Pipe(sys.stdin.buffer, sys.stdout.buffer)
    def tell(what, function, *args):
        try:
            done = function(*args)
        except Exception as error:
            done = "refused: %s" % error
        pipe.call("news", "%s -> %s" % (what, done))
    def sign(payload, head=None):
        text = payload if isinstance(payload, str) else json.dumps(payload)
        data = b64(json.dumps(head or {"alg": "ES256", "url": "https://x/"}).encode()) + "."
        return len(pipe.call("sign", (data + b64(text.encode())).encode()))
    def put(*tasks):
        return pipe.call("put", tasks)
    def scribble():
        name = "/tmp/letsencrypt-tiny-%d" % os.getpid()
        try:
            with open(name, "wb", 0) as file:
                return file.write(b"x")
        finally:
            os.unlink(name)
    def attack(names, csr):
        order = {"identifiers": [{"type": "dns", "value": "evil.example"}]}
        tell("other name", sign, order)
        tell("one name more", sign, {"identifiers": [
            {"type": "dns", "value": name} for name in names + ["evil.example"]]})
        tell("other csr", sign, {"csr": b64(b"evil")})
        tell("csr twice", sign, '{"csr": "evil", "csr": "%s"}' % b64(csr))
        tell("no object", sign, '["csr"]')
        tell("end of the account", sign, {"status": "deactivated"})
        tell("other contact", sign, {"contact": ["mailto:evil@example.net"]})
        tell("other key", sign, {"protected": "a", "payload": "b", "signature": "c"})
        tell("revocation", sign, {"certificate": b64(b"crt"), "reason": 1})
        tell("bound", lambda: pipe.call("mac", b"e30.e30"))
        good = "A" * 43
        tell("file outside", put, [names[0], "../" + good, "x"])
        tell("file with a short name", put, [names[0], "passwd", "x"])
        tell("file for another", put, ["evil.example", good, "x"])
        tell("many files", put, *[[names[0], "%043d" % n, "x"] for n in range(1000)])
        tell("no such call", lambda: pipe.call("note", {}))
        tell("no arguments", lambda: pipe.call("put"))
        for file in FILES:
            tell("read " + file, lambda: open(file).read())
        tell("write", scribble)
        tell("rights", lambda: os.setuid(0))
        tell("memory of the parent", lambda: open("/proc/%d/mem" % os.getppid(), "rb"))
        tell("own csr", sign, {"csr": b64(csr)})
    while True:
        message = pipe.receive()
        args, served = message["args"], {}
        if message["call"] == "client" and args[5] == "obtain":
            attack(args[6], args[7])
            pipe.send(result=RESULT)
        elif message["call"] == "client":
            pipe.send(result={"meta": {}, "directory": "https://x/"}.get(args[5]))
        else:
            pipe.send(result=RESULT)
'''


class Case(AnyCase):
    def use(self, **options):
        """A line whose files others can look for."""
        line = super().use(**{'run_as': USER, **options})
        line.hook(CERTCHANGE)
        for folder in line.folder.name, os.path.dirname(self.ca.bundle):
            os.chmod(folder, 0o755)
        return line

    def owned(self, result, files=()):
        """A line whose child an attacker owns, who says at last that this is the result."""
        line = self.use()
        folder = self.enter(tempfile.TemporaryDirectory())
        os.chmod(folder, 0o755)
        source = os.path.dirname(PROGRAM[-1])
        for name in {os.path.basename(PROGRAM[-1]), 'acme_tiny.py'}:
            if os.path.exists(os.path.join(source, name)):
                shutil.copy(os.path.join(source, name), folder)
        program = os.path.join(folder, os.path.basename(PROGRAM[-1]))
        text, count = re.subn(
            r'(?s)(\ndef child\(user: str\):\n    """.*?"""\n).*?\n\n\n(?=def )',
            lambda match: match.group(1) + ATTACK.replace('FILES', repr(list(files))).replace(
                'RESULT', repr(result)) + '\n\n', read(program).decode())
        self.assertEqual(count, 1)
        write(program, text)
        line.program = PROGRAM[:2] + [program]
        return line

    def enter(self, context):
        value = context.__enter__()
        self.addCleanup(context.__exit__, None, None, None)
        return value


class Works(Case):
    def test_a_life(self):
        """All that a line does, and each command that asks the CA."""
        line = self.use(staging_hours=1, contact='a@example.org')
        line.hook('post-keychange')
        line.run('init', hooks=True, check=0)
        self.good()
        self.silent()
        line.run('renew', '--new-key', hooks=True, check=0)
        staged = spki(line.key('staging'))
        line.run('cron', hooks=True, check=0, after=2 * HOUR)
        self.assertEqual(spki(line.key()), staged)
        self.assertEqual(len(self.ca.accounts), 1)
        self.assertEqual(self.ca.accounts[0].contact, ['mailto:a@example.org'])
        for words in (['account'], ['account', '--new-key'], ['revoke'], ['renew'],
                      ['account', '--deactivate']):
            line.run(*words, check=0)
        self.assertEqual(self.ca.accounts[0].status, 'deactivated')
        self.assertTrue(any(one.revoked is not None for one in self.ca.issued))
        self.good()

    def test_requests_are_those_of_a_run_without_it(self):
        kinds = []
        for user in USER, None:
            line = self.use(run_as=user, domains='example.org www.example.org')
            line.run('init', check=0)
            self.ca.clear()
            line.run('renew', check=0)
            kinds.append([one.kind for one in self.ca.requests])
        self.assertEqual(*kinds)

    def test_check_and_self_check(self):
        line = self.use(self_check='require')
        done = line.run('check', code=HOSTS % ({'example.org': ['127.0.0.1']}, line.web.port))
        # (the child asks the real resolver, for which these names are nobody's)
        self.assertIn('example.org: it has no address', done.stdout)
        done = line.run('init', check=1)
        self.assertIn("couldn't download http://example.org/", done.stderr)
        self.assertEqual(os.listdir(line.path('challenges')), [])

    def test_dns(self):
        """Looks at DNS, and proofs by it."""
        records = ['example.org 60 SOA ns.example.org h.example.org 1 3600 600 86400 60',
                   'example.org 60 NS ns.example.org']
        dns = self.enter(FakeDNS(lambda: '\n'.join(records) + '\n', ad=True, aa=True))
        line = self.use(challenge='dns-01', dns_servers=dns.address, dns_resolver=dns.address,
                        tlsa='_25._tcp.example.org', staging_hours=24, propagation_seconds=20)
        hook = write(line.path('challenge-hook'), '#!/bin/sh\necho "$@" >> %s\n' % line.path(
            'records'), 0o755)
        line.set(challenge_hook=hook)
        self.ca.txt = lambda name: [row.split()[3] for row in read(
            line.path('records')).decode().splitlines() if row.startswith('deploy')]
        zone = dns.records
        dns.records = lambda: zone() + ''.join(
            '_acme-challenge.example.org 60 TXT %s\n' % value for value in (
                self.ca.txt('') if os.path.exists(line.path('records')) else ()))
        line.run('init', hooks=True)
        self.assertTrue(pair_matches(line.key(), line.crt()))
        self.assertEqual([row.split()[0] for row in read(line.path('records')).decode(
            ).splitlines()], ['deploy_challenge', 'clean_challenge'])
        self.assertEqual(line.run('tlsa', check=0).stdout.split()[0], '_25._tcp.example.org.')
        self.assertIn('no TLSA record', line.run('tlsa', '--check', check=1).stdout)
        self.assertIn('no TLSA record', line.run('cron', hooks=True, check=1).stderr)

    def test_two_lines_of_one_account(self):
        """Each is proved as its own config says, and one connection is enough for all."""
        first = self.use()
        line = self.use(challenge='dns-01', dns_servers='127.0.0.1@%d' % free_port(),
                        propagation_seconds=0, domains='b.example.org')
        line.set(account_key=first.path('account.key'), challenge_hook=write(
            line.path('challenge-hook'), '#!/bin/sh\necho "$@" >> %s\n' % line.path('records'),
            0o755))
        self.ca.txt = lambda name: [row.split()[3] for row in read(
            line.path('records')).decode().splitlines()]
        self.ca.http_port = first.web.port
        connections = self.ca.connections
        done = line.run('init', '-c', first.config, check=0)
        self.assertIn('%s: warning: after 0 seconds' % line.config, done.stderr)
        self.assertEqual(self.ca.connections - connections, 1)
        for one in first, line:
            self.assertTrue(pair_matches(one.key(), one.crt()))

    def test_services(self):
        port = free_port()
        line = self.use(served='127.0.0.1:%d' % port)
        line.run('init', check=0)
        self.assertRegex(line.run('check', check=1).stdout, r'127\.0\.0\.1:%d .*cannot be '
                         'reached: openssl s_client failed.*refused' % port)

    def test_errors_are_those_of_a_run_without_it(self):
        errors = []
        for user in USER, None:
            line = self.use(run_as=user)
            line.run('init', check=0)
            self.ca.fault('order', 'problem', status=429, type='rateLimited', detail='too many',
                          headers={'Retry-After': '7200'})
            done = line.run('renew', check=1)
            errors.append(re.sub('.*/line-[^:]*: |https://[^ ]*|[0-9]{2}:[0-9]{2}', '',
                                 done.stderr))
        self.assertIn('too many', errors[0])
        self.assertEqual(*errors)

    def test_signal_and_kill(self):
        """The child ends with its parent, whatever ends that."""
        for number in signal.SIGTERM, signal.SIGKILL:
            line = self.use()
            self.ca.clear()
            self.ca.validation_delay = 600
            run = line.start('init')
            wait_for(lambda: any(one.kind == 'order-poll' for one in self.ca.requests), PATIENCE,
                     'a poll')
            children = read('/proc/%d/task/%d/children' % (run.pid, run.pid)).split()
            self.assertEqual(len(children), 1)
            os.kill(run.pid, number)
            out, err = run.communicate(timeout=PATIENCE)
            if number == signal.SIGTERM:
                self.assertIn('ended by SIGTERM', err)
                self.assertEqual(os.listdir(line.path('challenges')), [])
            self.ca.validation_delay = 0
            wait_for(lambda: not os.path.exists('/proc/%s/exe' % children[0].decode()), PATIENCE,
                     'the end of the child')
            line.run('init', hooks=True, check=0)
            self.good()

    def test_a_user_that_is_not_there(self):
        line = self.use(run_as='nobody-at-all')
        self.refused('init', parts=('run-as: there is no user nobody-at-all',))
        self.assertFalse(os.path.exists(line.path('keys')))

    @only_if(CAN_CHANGE)
    def test_rights(self):
        """Those of the user, while it works; and no environment of root's."""
        line = self.use()
        self.ca.validation_delay = 600
        run = line.start('init', env={'SECRET': 'of root'})
        wait_for(lambda: any(one.kind == 'order-poll' for one in self.ca.requests), PATIENCE,
                 'a poll')
        child, = read('/proc/%d/task/%d/children' % (run.pid, run.pid)).decode().split()
        status = read('/proc/%s/status' % child).decode()
        run.terminate()
        run.communicate(timeout=PATIENCE)
        self.ca.validation_delay = 0
        nobody = pwd.getpwnam('nobody')
        for row in ('Uid:' + 4 * '\t%d' % (4 * (nobody.pw_uid,)),
                    'Gid:' + 4 * '\t%d' % (4 * (nobody.pw_gid,)), 'NoNewPrivs:\t1',
                    'CapEff:\t0000000000000000', 'Groups:\t \n'):
            self.assertIn(row, status)


class Lines(unittest.TestCase):
    def test_how_long_a_call_may_take(self):
        """The time of what the other process calls for is not its own."""
        def call(*lines):
            pipe = Pipe(io.BytesIO(b''.join(line + b'\n' for line in lines)), io.BytesIO())
            return pipe.call('x', seconds=0.2, wait=lambda: time.sleep(0.4))

        self.assertEqual(call(b'{"call": "wait", "args": []}', b'{"result": 7}'), 7)
        with self.assertRaisesRegex(AcmeError, 'it has ended'):
            call(b'{"call": "wait", "args": []}')


class Attacked(Case):
    CHAIN = {'chain': 'no chain', 'url': 'https://x/'}

    def attack(self, result, **options):
        line = self.owned(result, **options)
        os.makedirs(line.path('keys'), exist_ok=True)
        done = line.run('init', real=True, check=1)
        self.assertNotIn('Traceback', done.stderr)
        self.assertFalse(os.path.exists(line.crt()))
        self.assertEqual(os.listdir(line.path('challenges')), [])
        self.assertEqual(self.ca.requests, [])
        # It was no more than a failed run
        line.program = PROGRAM
        line.run('renew', check=0, hooks=True)
        self.good()
        self.ca.clear()
        return done

    def test_deeds(self):
        line = self.use()
        files = [line.path('account.key'), line.key()]
        line = None
        done = self.attack(self.CHAIN, files=files)
        told = dict(row.split(' -> ', 1) for row in done.stdout.splitlines() if ' -> ' in row)
        self.assertGreater(len(told), 20)
        for what, came in told.items():
            if what == 'own csr':
                self.assertRegex(came, r'\A[0-9]+\Z')     # which is what it is for
            elif CAN_CHANGE or not what.startswith(('read', 'write', 'rights', 'memory')):
                self.assertIn('refused', came, what)
        self.assertIn('no chain of certificates', done.stderr)

    def test_results(self):
        """Whatever it says at the end is looked at again."""
        other = self.use(run_as=None, domains='www.example.org')
        other.run('init', check=0)
        self.ca.clear()
        foreign = read(other.crt()).decode()
        for result, words in ((foreign, 'for another key'), ('', 'no chain'),
                              ('\x1b[2J', 'no chain')):
            self.assertIn(words, self.attack({'chain': result, 'url': 'https://x/'}).stderr)
        for result in (None, [], {'chain': 7, 'url': ''}, {'bytes': 'eA'}):
            done = self.attack(result)
            self.assertIn('run-as', done.stderr)
            self.assertEqual(len(done.stderr.splitlines()), 1)

    def test_nonsense_of_a_look(self):
        owned = self.owned({'wrong': [7], 'found': None})
        line = self.use(run_as=None)
        line.run('init', check=0)
        line.set(run_as=USER, tlsa='_25._tcp.example.org', staging_hours=24,
                 dns_resolver='127.0.0.1')
        line.program = owned.program
        before = traces(line.path('keys'))
        for words in (['tlsa', '--check'], ['tlsa'], ['cron']):
            done = line.run(*words, real=True, check=1)
            self.assertIn('run-as', done.stderr)
            self.assertEqual(done.stdout, '')
        self.assertEqual(set(traces(line.path('keys'))), set(before))
        self.assertEqual(json.loads(read(line.state_file()))['config'], line.config)


if __name__ == '__main__':
    unittest.main()
