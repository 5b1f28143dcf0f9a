"""The program against a certificate authority that fails in every way: one clear line, exit status
1, live files as they were, and the next run works."""
import contextlib
import email.utils
import http.server
import os
import re
import select
import shutil
import signal
import socket
import socketserver
import ssl
import tempfile
import threading
import time
import unittest
from unittest import mock

from tests import fake_ca, support
from tests.fake_ca import PKI, FakeCA
from tests.support import PATIENCE, QuickLine as Line, Web, cert_names, pair_matches, wait_for

DAY = 86400
ESCAPES = '\x1b[2J\x1b]0;owned\x07\x9b31m\u202e\ud800\r\nletsencrypt-tiny: all is well\n'


class Series(FakeCA):
    """Clients come one after the other: each, when it asks for the directory, meets the next of
    `plan`, functions that are called with this CA and order faults. Signatures are not verified,
    and need not be made (SIGNED): that takes most of the time, and other tests look at it."""
    plan = ()

    def due_faults(self, kind):
        if kind == 'directory' and self.plan:
            del self.faults[:]
            self.misissue = None
            self.plan.pop(0)(self)
        return super().due_faults(kind)

    def __enter__(self):
        self.patches = contextlib.ExitStack()
        for name in 'signature_fits', 'jws_signature_fits':
            self.patches.enter_context(mock.patch.object(fake_ca, name, return_value=True))
        return super().__enter__()

    def __exit__(self, *exception):
        super().__exit__()
        self.patches.close()

    def kinds(self):
        """The kinds of the requests so far, in their order."""
        return [request.kind for request in self.requests]

    def set_clock(self, now):
        self.clock_offset = now - time.time()


class Ready(Line):
    """A line as `init` leaves it, but copied: that is faster."""
    template = None     # a folder
    code = ''           # Python to execute before each run

    def __enter__(self):
        super().__enter__()
        shutil.copytree(self.template, self.folder.name, dirs_exist_ok=True)
        return self

    def environment(self, env):
        """As Line's, but with signatures that only a Series accepts, if it is one."""
        fast = quick if isinstance(self.ca, Series) else {}
        return super().environment(dict(fast, **(env or {})))

    def run(self, *args, **options):
        return super().run(*args, code=self.code, **options)

    def forget_account(self):
        self.edit_state(lambda state: state.pop('account') and None)

    def kept(self):
        """What no failure may touch: the files of a line without its state and lock."""
        return {name: what for name, what in self.snapshot().items()
                if not name.endswith(('.state', '.lock', '.conf'))}


# Stands for openssl in runs against a Series: a signature in DER at once.
SIGNED = """#!/bin/sh
[ "$1" = dgst ] || exec %s "$@"
printf '0\\006\\002\\001\\001\\002\\001\\001'
"""


SOURCE = support.PROGRAM[-1]


def setUpModule():
    stack = contextlib.ExitStack()
    unittest.addModuleCleanup(stack.close)
    global ca
    ca = stack.enter_context(Series())
    Ready.template = stack.enter_context(tempfile.TemporaryDirectory())
    with Line(ca) as line:
        line.run('init', check=0)
        for name in 'keys', 'certs', 'backups':
            shutil.copytree(line.path(name), os.path.join(Ready.template, name))
        shutil.copy(line.path('account.key'), Ready.template)
    global quick
    quick = {'PATH': stack.enter_context(tempfile.TemporaryDirectory())}
    with open(os.path.join(quick['PATH'], 'openssl'), 'w') as file:
        file.write(SIGNED % shutil.which('openssl'))
    os.chmod(file.name, 0o755)


class Case(unittest.TestCase):

    def setUp(self):
        ca.clock_offset, ca.bad_nonce_rate, ca.misissue = 0, 0, None
        ca.reuse_authz, ca.retry_after, ca.plan = False, None, []
        del ca.faults[:], ca.requests[:]

    def line(self, *args, **options):
        line = Ready(*(args or [ca]), **options)
        self.addCleanup(line.__exit__)
        return line.__enter__()

    def assert_one_line(self, line, text, words=''):
        """Nothing but one clear line on stderr."""
        self.assertEqual(len(text.splitlines()), 1, text)
        self.assertTrue(text[:-1].isprintable(), ascii(text))
        self.assertTrue(text.startswith('letsencrypt-tiny: %s: ' % line.config), text)
        self.assertLess(len(text), 3000)
        self.assertNotIn('Traceback', text)
        self.assertRegex(text, words or '.')

    def batch(self, plan, *args, prepare=None, **options):
        """Run the command for one line for each in `plan` (see Series), all in one process.

        prepare: called with each line before. Returns the CompletedProcess and a list of
        (line, what kept() was before, what is on stderr of this line, kinds of its requests).
        """
        lines = [self.line(ca, **options)]
        for _ in plan[1:]:
            lines.append(self.line(ca, web=False, challenge_dir=lines[0].path('challenges'),
                                   **options))
        for line in lines if prepare else ():
            prepare(line)
        kept, ca.plan = [line.kept() for line in lines], list(plan)
        return self.again(lines, kept, *args)

    def again(self, lines, kept, *args):
        """Run the command for these lines, and return what batch() does."""
        more = [word for line in lines for word in ('-c', line.config)][2:]
        ca.clear()
        done = lines[0].run(*(args or ['renew']), *more)
        strange = [text for text in done.stderr.splitlines() if not text.startswith(
            tuple('letsencrypt-tiny: %s: ' % line.config for line in lines))]
        self.assertEqual((strange, ca.plan), ([], []), done.stderr)
        self.assertEqual(os.listdir(lines[0].path('challenges')), [], 'challenge files left')
        kinds = [text.split() for text in ' '.join(ca.kinds()).split('directory')[1:]]
        kinds += [[]] * (len(lines) - len(kinds))
        told = [''.join(text for text in done.stderr.splitlines(True) if line.config in text)
                for line in lines]
        return done, list(zip(lines, kept, told, kinds))

    def assert_failed(self, line, kept, told, words=''):
        self.assertEqual(line.kept(), kept)
        self.assert_one_line(line, told, words)

    def assert_renewed(self, line, kept, told):
        self.assertEqual(told, '')
        self.assertNotEqual(line.kept()['certs/live.crt'], kept['certs/live.crt'])
        self.assertNotIn('retry', line.state())

    def fails(self, line, *args, words='', **options):
        """The command ends with 1 and one line on stderr, and leaves everything as it was."""
        before = line.kept()
        done = line.run(*(args or ['renew']), **options)
        self.assertEqual((done.returncode, line.kept()), (1, before), done.stderr)
        self.assert_one_line(line, done.stderr, words)
        return done

    def works(self, line, *args, **options):
        """The command installs a certificate and says nothing on stderr."""
        count = len(line.ca.issued)
        done = line.run(*(args or ['renew']), check=0, **options)
        self.assertEqual(done.stderr, '')
        self.assertGreater(len(line.ca.issued), count)
        with open(line.crt()) as file:
            self.assertEqual(file.read().replace('\n\n', '\n'),
                             line.ca.issued[-1].chain.replace('\n\n', '\n'))
        self.assertEqual(os.listdir(line.options['challenge_dir']), [])
        self.assertNotIn('retry', line.state())
        return done


# ---- each answer spoiled in each way ------------------------------------------------------------

def fault(*args, **options):
    return lambda ca: ca.fault(*args, **dict({'times': None}, **options))


def every(value):
    """An answer all of whose members are this value."""
    return lambda data: dict.fromkeys(data, value)


def without(name):
    return lambda data: data.pop(name, None) and None


def with_member(name, value):
    return lambda data: data.update({name: value})


def spoiled_urls(data):
    """Escapes at the end of every URL in an answer, at any depth."""
    if isinstance(data, dict):
        return {name: spoiled_urls(value) for name, value in data.items()}
    if isinstance(data, list):
        return list(map(spoiled_urls, data))
    return data + ESCAPES if isinstance(data, str) and data.startswith('https:') else data


# What can be wrong with any answer: name -> arguments of FakeCA.fault() after the kind
ANY = {
    'drop': ('drop', {}),
    'cut': ('cut', {}),
    'endless': ('endless', {}),
    'garbage': ('body', {'body': b'\0\xff\x1b[2J\x07 nonsense'}),
    'HTML': ('body', {'body': b'<html><h1>Welcome!</h1></html>'}),
    'HTML error': ('http_error_html', {}),
    'empty': ('body', {'body': b''}),
    'list': ('body', {'body': b'[{}]'}),
    'null': ('body', {'body': b'null'}),
    'nothing in it': ('body', {'body': b'{}'}),
    'deep': ('body', {'body': b'[' * 200000}),
    'not UTF-8': ('body', {'body': b'{"status": "\xff\xfe"}'}),
    'numbers': ('edit', {'edit': every(7)}),
    'nulls': ('edit', {'edit': every(None)}),
    'objects': ('edit', {'edit': every({'a': 'b'})}),
    'status 500': ('status', {'status': 500}),
    'status 500 {}': ('status', {'status': 500, 'body': b'{}'}),
    'status 404': ('status', {'status': 404, 'body': b'{"detail": null}'}),
    'redirect': ('redirect', {'location': 'https://127.0.0.1:1/'}),
    'http URL': ('edit_text', {'edit': lambda text: text.replace('https:', 'http:')}),
    'file URL': ('edit_text', {'edit': lambda text: text.replace('https:', 'file:')}),
    'escapes in URLs': ('edit', {'edit': spoiled_urls}),
    'escapes in errors': ('problem', {
        'status': 403, 'type': 'x' + ESCAPES, 'detail': ESCAPES, 'instance': ESCAPES,
        'subproblems': [{'type': ESCAPES, 'detail': ESCAPES, 'identifier': {'value': ESCAPES}}]}),
    'long error': ('problem', {'detail': 'x' * 900000}),
    'strange error': ('status', {'status': 400, 'body':
                                 b'{"type": 1, "detail": [], "subproblems": [1, null, "x", {}]}'}),
    'deep error': ('status', {'status': 403, 'body':
                              b'{"detail":' + b'[' * 500 + b']' * 500 + b'}'})}
BODIES = {'garbage', 'HTML', 'empty', 'list', 'null', 'nothing in it', 'deep', 'not UTF-8',
          'numbers', 'nulls', 'objects', 'http URL', 'file URL', 'escapes in URLs'}
RARE = {'HTML', 'list', 'null', 'not UTF-8', 'nulls', 'objects', 'status 500 {}', 'status 404',
        'file URL', 'long error', 'strange error', 'deep error'}
# What only some answers have
MORE = {
    'directory': {'no ' + name: ('edit', {'edit': without(name)})
                  for name in ('newNonce', 'newAccount', 'newOrder')},
    'nonce': {'no nonce': ('headers', {'headers': {'Replay-Nonce': None}}),
              'a strange nonce': ('headers', {'headers': {'Replay-Nonce': '\x1b[2J"\\\xff'}})},
    'account': {'no Location': ('headers', {'headers': {'Location': None}}),
                'http Location': ('headers', {'headers': {'Location': 'http://127.0.0.1/1'}}),
                'escapes in Location': ('headers', {'headers': {'Location': '\x1b[2J\x9b1m\xff'}})},
    'order': {
        'no Location': ('headers', {'headers': {'Location': None}}),
        'no Location, strange headers': ('headers', {'headers': {
            'Location': None, 'X-Strange': 'Xyz: \x1c08:49:37 x'}}),
        'http Location': ('headers', {'headers': {'Location': 'http://127.0.0.1/1'}}),
        'escapes in Location': ('headers', {'headers': {'Location': 'https://\x1b[2J\x9b1m\xff'}}),
        'no status': ('edit', {'edit': without('status')}),
        'no authorizations': ('edit', {'edit': without('authorizations')}),
        'strange authorizations': ('edit', {'edit': with_member('authorizations', [7, None, {}])}),
        'strange status': ('edit', {'edit': with_member('status', ESCAPES)}),
        'invalid': ('edit', {'edit': with_member('status', 'invalid')}),
        'too many authorizations': ('edit', {'edit': lambda data: data.update(
            authorizations=data['authorizations'] * 2)})},
    'authz': {
        'no identifier': ('edit', {'edit': without('identifier')}),
        'no status': ('edit', {'edit': without('status')}),
        'no challenges': ('edit', {'edit': without('challenges')}),
        'other name': ('edit', {'edit': with_member('identifier', {
            'type': 'dns', 'value': 'evil.example.net' + ESCAPES})}),
        'wildcard': ('edit', {'edit': with_member('wildcard', True)}),
        'expired': ('edit', {'edit': with_member('status', 'expired')}),
        'no http-01': ('edit', {'edit': lambda data: data['challenges'].pop() and None}),
        'strange challenges': ('edit', {'edit': with_member('challenges', [7, None, 'x', [], {}, {
            'type': 'http-01'}, {'type': 'http-01', 'url': 7, 'token': 7}])})},
    'order-poll': {
        'no status': ('edit', {'edit': without('status')}),
        'no finalize': ('edit', {'edit': without('finalize')}),
        'strange status': ('edit', {'edit': with_member('status', ESCAPES)}),
        'invalid': ('edit', {'edit': lambda data: data.update(
            status='invalid', error={'detail': ESCAPES})})},
    'finalize': {
        'no status': ('edit', {'edit': without('status')}),
        'no certificate': ('edit', {'edit': without('certificate')}),
        'invalid': ('edit', {'edit': with_member('status', 'invalid')})},
    'certificate': {
        'cut text': ('edit_text', {'edit': lambda text: text[:len(text) // 2]}),
        'planted key': ('edit_text', {'edit': lambda text: fake_ca.pem('PRIVATE KEY', b'') + text}),
        'only the issuer': ('edit_text', {'edit': lambda text: text[text.rindex('-----BEGIN'):]})}}
# Answers in which the program needs nothing of what was spoiled
HARMLESS = {
    'directory': set(),
    # HEAD has no body, and a refused nonce brings a fresh one
    'nonce': {'cut', 'endless', 'no nonce', 'a strange nonce'},
    'account': BODIES,      # all that counts is the Location
    'order': set(), 'authz': set(),
    'challenge': BODIES,
    'order-poll': set(), 'finalize': set(), 'certificate': set()}


class Spoiled(Case):
    """For each kind of answer, one line for each fault; all run one after the other."""

    def spoil(self, kind):
        faults = dict(ANY, **MORE.get(kind, {}))
        for name in list(ANY):
            if (name in RARE and kind != 'order'        # one kind has them all
                    or kind == 'certificate' and (faults[name][0] == 'edit' or 'URL' in name)
                    or kind == 'nonce' and (name in BODIES or name == 'escapes in errors')):
                del faults[name]    # there is no JSON, no body at all
        done, rows = self.batch(
            [fault(kind, what, **args) for what, args in faults.values()],
            prepare=Ready.forget_account if kind == 'account' else None)
        self.assertEqual(done.returncode, 1)
        for name, (line, kept, told, _) in zip(faults, rows):
            with self.subTest(kind, fault=name):
                if name in HARMLESS[kind]:
                    self.assert_renewed(line, kept, told)
                    continue
                self.assert_failed(line, kept, told, "no certificate 'live': ")
                retry = line.state()['retry']
                self.assertEqual((retry['count'], retry['names']), (1, ['example.org']))
                self.assertTrue(retry['error'].isprintable())
        # Whatever was remembered of it, the next run by hand works. (What could be remembered
        # wrongly is the account; elsewhere some of the lines are enough.)
        del ca.faults[:]
        ca.reuse_authz = kind not in ('authz', 'challenge')
        rows = rows[::1 if kind == 'account' else 4]
        _, rows = self.again([row[0] for row in rows], [row[1] for row in rows])
        for line, kept, told, _ in rows:
            self.assert_renewed(line, kept, told)

    def test_directory(self):
        self.spoil('directory')

    def test_nonce(self):
        self.spoil('nonce')

    def test_account(self):
        self.spoil('account')

    def test_order(self):
        self.spoil('order')

    def test_authorization(self):
        self.spoil('authz')

    def test_challenge(self):
        self.spoil('challenge')

    def test_order_poll(self):
        self.spoil('order-poll')

    def test_finalize(self):
        self.spoil('finalize')

    def test_certificate(self):
        self.spoil('certificate')


# ---- keeping away -------------------------------------------------------------------------------

class KeepingAway(Case):

    KINDS = ('directory', 'nonce', 'account', 'account-update', 'order', 'authz', 'challenge',
             'order-poll', 'finalize', 'certificate')

    def test_retry_after_of_any_answer(self):
        """429 and 503, in seconds and as a date: no request before that time, whoever asks."""
        now, plan, asked = time.time(), [], []
        for number, kind in enumerate(self.KINDS):
            asked.append(now + 1800 + 600 * number)
            value = email.utils.formatdate(asked[-1], usegmt=True) if number % 2 else str(
                int(asked[-1] - now))
            plan.append(fault(kind, 'status', status=503 if number % 4 < 2 else 429,
                              headers={'Retry-After': value}))
        # With a contact and no known account, each line meets all kinds.
        _, rows = self.batch(plan, prepare=Ready.forget_account, contact='a@example.org')
        lines, kept, told, _ = zip(*rows)
        for line, old, text, kind in zip(lines, kept, told, self.KINDS):
            with self.subTest(kind):
                self.assert_failed(line, old, text)
        del ca.faults[:]
        for line in lines:      # so that one is due for cron, too
            line.set(domains='example.org www.example.org')
        for command in 'renew', 'cron':
            _, rows = self.again(lines, kept, command)
            self.assertEqual(ca.kinds(), [])
            for (line, old, text, _), kind, until in zip(rows, self.KINDS, asked):
                with self.subTest(kind, command=command):
                    after = line.state()['retry']['after']
                    self.assertLess(abs(after - until), 60)
                    self.assert_failed(line, old, text, time.strftime(
                        '%Y-%m-%d %H:%M', time.gmtime(after)))

    def test_it_ends(self):
        line, now = self.line(), time.time()
        ca.fault('order', 'status', status=429, headers={'Retry-After': '7200'})
        self.fails(line)
        ca.clear()
        for ahead in 60, 7000:
            ca.set_clock(now + ahead)
            self.fails(line, now=now + ahead)
        self.assertEqual(ca.kinds(), [])
        ca.set_clock(now + 7300)
        self.works(line, now=now + 7300)

    def test_another_ca_need_not_wait(self):
        line = self.line()
        ca.fault('order', 'status', status=503, headers={'Retry-After': '7200'}, times=None)
        self.fails(line)
        with FakeCA(http_port=line.web.port) as other:
            line.set(directory_url=other.directory_url)
            line.run('renew', check=0)
            self.assertEqual(len(other.issued), 1)

    def test_eight_days_at_most(self):
        date = email.utils.formatdate(time.time() + 90 * DAY, usegmt=True)
        for value in '999999999999', '9' * 5000, date:
            line, now = self.line(), time.time()
            ca.fault('order', 'status', status=429, headers={'Retry-After': value})
            self.fails(line)
            self.assertLess(abs(line.state()['retry']['after'] - now - 8 * DAY), 300)
            ca.set_clock(now + 7.9 * DAY)
            ca.clear()
            self.fails(line, now=now + 7.9 * DAY)
            self.assertEqual(ca.kinds(), [])
            ca.set_clock(now)

    def test_of_other_answers_it_means_nothing(self):
        """Only 429 and 503 forbid; and nonsense is as if it were not there."""
        cases = (500, '86400'), (400, '86400'), (429, 'soon'), (429, '-5'), (503, '')
        _, rows = self.batch([fault('authz', 'status', status=status, headers={
            'Retry-After': value}) for status, value in cases])
        for (line, kept, told, _), case in zip(rows, cases):
            with self.subTest(case):
                self.assert_failed(line, kept, told)
                self.assertLess(line.state()['retry']['after'], time.time() + 61)
        lines, kept, _, _ = zip(*rows)
        del ca.faults[:]
        for line, old, told, _ in self.again(lines, kept)[1]:
            self.assert_renewed(line, old, told)

    def test_polling_waits_as_asked_but_not_for_ever(self):
        line = self.line()
        ca.retry_after = 1
        with mock.patch.object(ca, 'issue_delay', 0.5):
            self.works(line)
        # On a slow machine it is not issued yet at the first poll.
        after = ca.requests[ca.kinds().index('finalize'):]
        self.assertEqual(after[1].kind, 'order-poll')
        for finalize, poll in zip(after, after[1:]):
            if poll.kind == 'order-poll':
                self.assertGreater(poll.time - finalize.time, 0.9)


class BackOff(Case):

    def test_cron(self):
        """After 1 min, 10 min, 100 min, then daily; nothing in between but a line that says so."""
        line, now = self.line(), time.time()
        line.set(domains='example.org www.example.org')
        ca.fault('order', 'status', status=500, times=None)

        def cron():
            ca.clear()
            ca.set_clock(now)
            self.fails(line, 'cron', now=now)
            return 'order' in ca.kinds()

        self.assertTrue(cron())
        for least, most in (40, 80), (580, 620), (5980, 6020), (DAY / 2, DAY):
            last = now
            now = last + least
            self.assertFalse(cron(), 'too early after %d' % least)
            self.assertEqual(ca.kinds(), [])
            now = last + most
            self.assertTrue(cron(), 'too late after %d' % most)
        del ca.faults[:]
        now += DAY
        ca.set_clock(now)
        self.works(line, 'cron', now=now)
        # The next failure begins anew
        line.set(domains='example.org')
        ca.fault('order', 'status', status=500, times=None)
        self.assertTrue(cron())
        self.assertLess(line.state()['retry']['after'], now + 80)

    def test_runs_that_were_killed(self):
        """One is tried again at once; a program that dies at each order does not order for ever.
        What they left is removed first."""
        line = self.line()
        line.set(domains='example.org www.example.org')
        ca.fault('challenge', 'delay', seconds=600, times=None)
        for _ in range(2):
            ca.clear()
            process = line.start('cron')
            wait_for(lambda: 'challenge' in ca.kinds(), PATIENCE, 'challenge')
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            self.assertEqual(len(os.listdir(line.path('challenges'))), 2)
        del ca.faults[:]
        ca.clear()
        done = line.run('cron', check=1)
        self.assertEqual((ca.kinds(), os.listdir(line.path('challenges'))), ([], []))
        self.assert_one_line(line, done.stderr)
        self.works(line, 'renew')
        self.assertEqual(cert_names(line.crt()), ['example.org', 'www.example.org'])

    def test_other_names_do_not_wait(self):
        line = self.line()
        line.set(domains='example.org wrong.example.org')
        ca.fault('order', 'problem', type='rejectedIdentifier')
        self.fails(line, 'cron')
        line.set(domains='example.org right.example.org')
        self.works(line, 'cron')

    def test_a_signal_is_no_failure(self):
        line = self.line()
        before = line.kept()
        for number in signal.SIGTERM, signal.SIGINT, signal.SIGHUP:
            ca.clear()
            del ca.faults[:]
            ca.fault('challenge', 'delay', seconds=600)
            process = line.start('renew')
            wait_for(lambda: 'challenge' in ca.kinds(), PATIENCE, 'challenge')
            self.assertEqual(len(os.listdir(line.path('challenges'))), 1)
            process.send_signal(number)
            out, err = process.communicate(timeout=PATIENCE)
            with self.subTest(number):
                self.assertEqual(process.returncode, 128 + number)
                self.assertEqual(len(err.splitlines()), 1, err)
                self.assertIn(signal.Signals(number).name, err)
                self.assertEqual(line.kept(), before)
                self.assertNotIn('retry', line.state())
                self.assertFalse(line.state().get('challenges'))
        del ca.faults[:]
        self.works(line)


# ---- what servers of this world do --------------------------------------------------------------

class Nonces(Case):

    def test_once_each(self):
        line = self.line()
        line.forget_account()
        for kind in 'account', 'order', 'authz', 'challenge', 'order-poll', 'finalize', \
                'certificate':
            ca.fault(kind, 'bad_nonce')
        self.works(line)
        self.assertEqual(len(ca.requests), 9 + 7)

    def test_more_often_than_not(self):
        line = self.line()
        ca.bad_nonce_rate = 0.7
        self.works(line)

    def test_for_ever(self):
        line = self.line()
        ca.fault('order', 'bad_nonce', times=None)
        self.fails(line, words='badNonce')
        self.assertLess(20, len(ca.requests))
        self.assertLess(len(ca.requests), 110)
        del ca.faults[:]
        self.works(line)

    def test_one_from_each_answer(self):
        """After the first, none is asked for."""
        line = self.line()
        ca.fault('authz', 'problem', status=500)
        self.fails(line)
        self.works(line)
        self.assertEqual(ca.kinds().count('nonce'), 2)


class Accounts(Case):

    def test_forgotten(self):
        """However a CA says so, the program registers again, but once a run."""
        urn = b'{"type": "urn:ietf:params:acme:error:%s"}'
        cases = ((400, urn % b'accountDoesNotExist'), (403, urn % b'unauthorized'), (500, b'{}'),
                 (500, urn % b'serverInternal'), (404, b''), (400, urn % b'malformed'),
                 (401, urn % b'unauthorized'))
        for times in 1, None:
            _, rows = self.batch([fault('order', 'status', status=status, body=body, times=times)
                                  for status, body in cases])
            for (line, kept, told, kinds), case in zip(rows, cases):
                with self.subTest(case, times=times):
                    if times:
                        self.assert_renewed(line, kept, told)
                    else:
                        self.assert_failed(line, kept, told)
                    self.assertEqual((kinds.count('account'), kinds.count('order')), (1, 2))

    def test_really_forgotten(self):
        with FakeCA() as other, Line(other) as line:
            line.run('init', check=0)
            other.forget_accounts()
            other.clear()
            self.works(line)
            self.assertEqual([r.kind for r in other.requests].count('account'), 1)
            other.clear()
            self.works(line)
            self.assertEqual([r.kind for r in other.requests].count('account'), 0)

    def test_another_key_or_ca(self):
        line = self.line()
        with FakeCA(http_port=line.web.port) as other:
            line.set(directory_url=other.directory_url)
            line.ca = other
            self.works(line)
            os.unlink(line.path('account.key'))
            done = line.run('renew', check=0)
            self.assertIn('account key', done.stdout)
            self.assertEqual(len(other.accounts), 2)

    def test_contact(self):
        with FakeCA() as other, Line(other, contact='a@example.org, mailto:b@example.org') as line:
            line.run('init', check=0)
            self.assertEqual(other.accounts[0].contact,
                             ['mailto:a@example.org', 'mailto:b@example.org'])
            line.set(contact='c@example.org')
            self.works(line)
            self.assertEqual(other.accounts[0].contact, ['mailto:c@example.org'])
            other.clear()
            self.works(line)        # known, and nothing to change
            self.assertEqual({r.kind for r in other.requests} & {'account', 'account-update'},
                             set())

    def test_contact_that_is_refused(self):
        for kind in 'invalidContact', 'unsupportedContact', 'malformed':
            with FakeCA() as other, Line(other, contact='a@example.org') as line:
                other.fault('account', 'problem', type=kind)
                line.run('init', check=0)
                asked = [r.payload for r in other.requests if r.kind == 'account']
                self.assertEqual([sorted(payload) for payload in asked],
                                 [['contact', 'termsOfServiceAgreed'], ['termsOfServiceAgreed']])

    def test_contact_that_is_not_understood(self):
        """It is optional: whatever becomes of it, there is a certificate."""
        cases = (
            ('account-update', 'status', {'status': 404}),
            ('account-update', 'problem', {'type': 'invalidContact'}),
            ('account-update', 'status', {'status': 500, 'body': b'{}'}),
            ('account-update', 'body', {'body': b'nonsense'}),
            ('account-update', 'body', {'body': b'[' + b' ' * 1200000}),
            ('account-update', 'edit', {'edit': lambda data: [data]}),
            ('account-update', 'cut', {}),
            ('account-update', 'drop', {}),
            ('account-update', 'endless', {}),
            ('account', 'body', {'body': b'{}'}),
            ('account', 'edit', {'edit': lambda data: {'contact': [None]}}),
            ('account', 'edit', {'edit': lambda data: {'contact': None}}))
        _, rows = self.batch([fault(kind, what, **args) for kind, what, args in cases],
                             contact='a@example.org')
        for (line, kept, told, kinds), case in zip(rows, cases):
            with self.subTest(case[:2]):
                self.assertIn(case[0], kinds)
                self.assert_renewed(line, kept, told)

    def test_terms_of_service(self):
        """What a person has to do is shown with the address where to do it."""
        line = self.line()
        line.forget_account()
        ca.fault('account', 'problem', status=403, type='userActionRequired',
                 detail='agree to the new terms', instance='https://example.org/terms/7')
        self.fails(line, words='agree to the new terms.*https://example.org/terms/7')


class Orders(Case):

    def test_ready_at_once(self):
        line = self.line()
        ca.reuse_authz = True
        self.works(line)
        ca.clear()
        self.works(line)
        self.assertEqual(ca.kinds(), ['directory', 'nonce', 'order', 'finalize', 'certificate'])

    def test_some_names_are_verified_already(self):
        line = self.line()
        ca.reuse_authz = True
        self.works(line)
        line.set(domains='example.org new.example.org')
        hits = len(line.web.hits)
        self.works(line)
        self.assertEqual(cert_names(line.crt()), ['example.org', 'new.example.org'])
        self.assertEqual([host for host, _ in line.web.hits[hits:]], ['new.example.org'])

    def test_verified_already_by_something_else(self):
        """Then http-01 need not even be listed."""
        line = self.line()
        ca.reuse_authz = True
        self.works(line)
        ca.fault('order', 'edit', edit=with_member('status', 'pending'))
        ca.fault('authz', 'edit', edit=with_member('challenges', [
            {'type': 'dns-01', 'status': 'valid', 'url': 'https://127.0.0.1/', 'token': 'x'}]))
        self.works(line)

    def test_valid_at_once(self):
        line = self.line()
        self.works(line)
        ours = ca.orders[-1]
        ca.misissue = 'wrong_key'
        self.fails(line, words='another key')
        theirs = ca.orders[-1]
        ca.misissue = None
        ca.fault('order', 'edit', edit=lambda data: data.update(
            status='valid', certificate=ca.url + theirs.download))
        self.fails(line, words='another key')
        # One for our key is as good as any other.
        os.unlink(line.crt())
        ca.fault('order', 'edit', edit=lambda data: data.update(
            status='valid', certificate=ca.url + ours.download))
        ca.clear()
        line.run('renew', check=0)
        self.assertEqual(ca.kinds(), ['directory', 'nonce', 'order', 'certificate'])
        self.assertTrue(pair_matches(line.key(), line.crt()))

    def test_the_present_certificate_again(self):
        """A cache that answers in the CA's place renews nothing."""
        line = self.line()
        self.works(line)
        ca.fault('certificate', 'repeat')
        self.fails(line)

    def test_an_older_certificate(self):
        line = self.line()
        with mock.patch.object(ca, 'validity', 80 * DAY):
            self.fails(line, words='again, or one that ends earlier')

    def test_wrong_certificates(self):
        cases = {'wrong_key': 'another key', 'wrong_names': 'wrong.example.net',
                 'expired': 'not valid now', 'not_yet': 'clock', 'planted_key': 'no certificate',
                 'shuffled': 'did not issue'}
        _, rows = self.batch([lambda ca, wrong=wrong: setattr(ca, 'misissue', wrong)
                              for wrong in cases])
        for (line, kept, told, _), wrong in zip(rows, cases):
            with self.subTest(wrong):
                self.assert_failed(line, kept, told, cases[wrong])
        ca.misissue = None
        self.works(rows[0][0])

    def test_unknown_challenges_first(self):
        line = self.line()
        ca.fault('authz', 'edit', edit=lambda data: data.update(challenges=[
            7, None, 'http-01', [], {}, {'type': 'http-01'}, {'type': ['http-01']},
            {'type': 'http-02', 'url': 'https://127.0.0.1/', 'token': 'x'}] + data['challenges']))
        self.works(line)

    def test_strange_tokens(self):
        tokens = ('../escaped', '..', '', 'a/b', '/etc/passwd', 'a.b', 'a b', 'a\n', None, 7,
                  'x' * 5000, '\x1b[2J', 'a\0b', '\u00e9')
        _, rows = self.batch([fault('authz', 'edit', edit=lambda data, token=token: [
            challenge.update(token=token) for challenge in data['challenges']] and None)
            for token in tokens])
        for (line, kept, told, kinds), token in zip(rows, tokens):
            with self.subTest(repr(token)[:20]):
                self.assert_failed(line, kept, told, 'example.org cannot be verified')
                self.assertNotIn('challenge', kinds)

    def test_one_token_for_two_names(self):
        line = self.line()
        line.set(domains='example.org www.example.org')

        def share(data):
            for authz in ca.orders[-1].authorizations:
                for challenge in authz.challenges:
                    challenge.token = 'shared'

        ca.fault('order', 'edit', edit=share)
        self.works(line)
        self.assertEqual(len(line.web.hits), 2)

    def test_names_in_upper_case(self):
        line = self.line()
        for kind in 'order', 'order-poll', 'authz', 'finalize':
            ca.fault(kind, 'edit_text', times=None,
                     edit=lambda text: text.replace('example.org', 'EXAMPLE.Org'))
        self.works(line)

    def test_a_validation_that_fails(self):
        line = self.line()
        line.set(domains='example.org www.example.org')
        ca.http_port = 1
        self.fails(line, words='Challenge did not pass for example.org: .*connection.*'
                               'www.example.org.*refused')
        ca.http_port = line.web.port
        self.works(line)

    def test_a_challenge_that_is_refused_at_once(self):
        line = self.line()
        ca.fault('challenge', 'problem', status=400, type='connection', detail='no route')
        self.fails(line, words='example.org.*no route')

    def test_errors_of_an_order_name_the_names(self):
        line = self.line()
        line.set(domains='example.org www.example.org')
        ca.fault('order', 'problem', status=403, type='compound', detail='several', subproblems=[
            {'type': 'urn:ietf:params:acme:error:caa', 'detail': 'CAA record forbids',
             'identifier': {'type': 'dns', 'value': 'www.example.org'}}])
        self.fails(line, words='compound.*several.*www.example.org.*caa.*CAA record forbids')
        ca.fault('finalize', 'problem', type='badCSR', detail='no such keys here')
        self.fails(line, words='badCSR.*no such keys here')


class Clocks(Case):

    def test_it_is_told(self):
        for days, words in (1, '1 days behind'), (-2, '2 days ahead'):
            line = self.line()
            ca.clock_offset = days * DAY
            with mock.patch.multiple(ca, backdate=3600 + max(0, days) * DAY,
                                     validity=100 * DAY):
                done = line.run('renew', check=0)
            self.assert_one_line(line, done.stderr, words)
        for offset in 3000, -3000:      # less than an hour is not worth a word
            ca.clock_offset = offset
            with mock.patch.object(ca, 'validity', 100 * DAY):
                self.works(self.line())

    def test_no_key_is_made(self):
        line = self.line(ca, staging_hours=1)
        line.age('live', 400)
        for days in 1, -1:
            ca.clock_offset = days * DAY
            self.fails(line, 'cron', words='clock is 1 days')
        ca.clock_offset = 0
        line.run('cron', check=0)
        self.assertTrue(os.path.exists(line.key('staging')))

    def test_no_key_goes_live(self):
        line = self.line(ca, staging_hours=1)
        line.age('live', 400)
        line.run('cron', check=0)
        line.edit_state(lambda state: state.update(published=state['published'] - 3700))
        ca.clock_offset = DAY
        self.fails(line, 'cron', words='clock is 1 days behind')
        ca.clock_offset = 0
        line.run('cron', check=0)
        self.assertFalse(os.path.exists(line.key('staging')))
        self.assertTrue(pair_matches(line.key(), line.crt()))

    def test_a_strange_date(self):
        dates = None, 'yesterday', '', 'Mon, 99 Foo 0000 99:99:99 GMT', '\x1b[2J\xff'
        _, rows = self.batch([fault('*', 'headers', headers={'Date': date}) for date in dates])
        for line, kept, told, _ in rows:
            self.assert_renewed(line, kept, told)


# ---- connections --------------------------------------------------------------------------------

class Headers(FakeCA):
    """Keeps the headers of all requests."""

    def respond(self, method, path, headers, body):
        self.__dict__.setdefault('headers', []).append((method, headers))
        return super().respond(method, path, headers, body)


class Losing(FakeCA):
    """Does what requests of the kind `lose` ask for, and does not answer."""
    lose = None

    def respond(self, method, path, headers, body):
        reply, faults = super().respond(method, path, headers, body)
        lost = self.requests[-1].kind == self.lose and reply.status < 300
        return reply, dict(faults, drop={}) if lost else faults


class Proxy:
    """A proxy for CONNECT. `asked`: targets and headers; status: what it answers."""

    def __init__(self, status='200 OK'):
        self.status, self.asked = status, []

    def __enter__(self):
        proxy = self

        class Handler(socketserver.StreamRequestHandler):
            timeout = PATIENCE

            def handle(self):
                words, headers = self.rfile.readline().decode().split(), []
                while headers[-1:] != ['']:
                    headers.append(self.rfile.readline().decode().strip())
                proxy.asked.append((words[:2], headers))
                self.wfile.write(('HTTP/1.1 %s\r\n\r\n' % proxy.status).encode())
                if not proxy.status.startswith('200'):
                    return
                host, port = words[1].split(':')
                with socket.create_connection((host, int(port))) as target:
                    ends = {self.connection: target, target: self.connection}
                    while True:
                        for end in select.select(list(ends), [], [])[0]:
                            data = end.recv(65536)
                            if not data:
                                return
                            ends[end].sendall(data)

        self.server = socketserver.ThreadingTCPServer(('127.0.0.1', 0), Handler)
        self.server.daemon_threads = True
        self.url = 'http://127.0.0.1:%d' % self.server.server_address[1]
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *exception):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


class Connections(Case):

    def test_few_requests_on_one_connection(self):
        line = self.line()
        line.set(domains=' '.join('host%d.example.org' % number for number in range(10)))
        connections = ca.connections
        self.works(line)
        self.assertEqual(ca.connections - connections, 1)
        self.assertLessEqual(len(ca.requests), 2 * 10 + 9)
        self.assertEqual(ca.kinds().count('account'), 0)

    def test_none_when_nothing_is_due(self):
        line, connections = self.line(), ca.connections
        done = line.run('cron', check=0)
        self.assertEqual((done.stdout, done.stderr), ('', ''))
        self.assertEqual((ca.kinds(), ca.connections), ([], connections))

    def test_closed_by_the_server_between_requests(self):
        line, connections = self.line(), ca.connections
        ca.fault('*', 'close', times=None)
        self.works(line)
        self.assertEqual(ca.connections - connections, len(ca.requests))

    def test_lost_once(self):
        """What was asked on a connection that had been closed is asked once more."""
        line = self.line()
        for kind in 'order', 'authz', 'challenge', 'order-poll', 'certificate':
            ca.fault(kind, 'drop')
        self.works(line)

    def test_the_answer_to_finalize_is_lost(self):
        """The CA did it, and says that it cannot do it twice: then the certificate is there."""
        line = self.line()
        ca.fault('finalize', 'drop')
        self.works(line)
        self.assertEqual(len(ca.orders[-1].names), 1)

    def test_answers_to_the_order_are_lost_for_ever(self):
        """Each may have been obeyed, and CAs count orders."""
        with Losing() as other, Line(other) as line:
            other.lose = 'order'
            line.run('init', check=1)
            self.assertLess(len(other.orders), 5)

    def test_not_ready_after_all(self):
        """The order was ready, but the CA has forgotten that for a moment."""
        line = self.line()
        ca.fault('finalize', 'problem', status=403, type='orderNotReady')
        self.works(line)

    def test_an_endless_answer(self):
        """Ends when it is too long, and not only when it takes too long."""
        start = time.monotonic()
        ca.fault('directory', 'endless')
        self.fails(self.line(), words='over 1000000 bytes')
        self.assertLess(time.monotonic() - start, 20)

    def test_headers(self):
        with Headers() as other, Line(other) as line:
            line.run('init', check=0)
            for method, headers in other.headers:
                self.assertRegex(headers['User-Agent'], r'^letsencrypt-tiny/[0-9.]+')
                self.assertTrue(headers['Accept-Language'])
                self.assertEqual(headers['Content-Type'],
                                 'application/jose+json' if method == 'POST' else None)
                self.assertNotEqual(headers['Connection'], 'close')
            self.assertEqual({method for method, _ in other.headers}, {'GET', 'HEAD', 'POST'})

    def test_proxy(self):
        target = ca.url.replace('https://', '')
        with Proxy() as proxy:
            line, connections = self.line(), ca.connections
            self.works(line, env={'https_proxy': proxy.url})
            self.works(line, env={'https_proxy': 'http://127.0.0.1:1', 'no_proxy': '127.0.0.1'})
            self.assertEqual([words for words, _ in proxy.asked], [['CONNECT', target]])
            self.assertEqual(ca.connections - connections, 2)
            line.set(proxy=proxy.url)
            self.works(line)
            self.works(line, env={'https_proxy': 'http://127.0.0.1:1'})
            self.assertEqual(len(proxy.asked), 3)
            line.set(proxy=None)
            self.fails(line, env={'https_proxy': 'http://127.0.0.1:1'}, words='refused')

    def test_proxy_with_a_password(self):
        with Headers() as other, Proxy() as proxy, Line(other) as line:
            line.set(proxy=proxy.url.replace('//', '//user:secret@'))
            line.run('init', check=0)
            (_, headers), = proxy.asked
            self.assertIn('proxy-authorization: basic dxnlcjpzzwnyzxq=',
                          [header.lower() for header in headers])
            for _, headers in other.headers:
                self.assertNotIn('secret', str(headers))
                self.assertIsNone(headers['Proxy-Authorization'])

    def test_proxy_that_refuses(self):
        with Proxy('407 Proxy Authentication Required') as proxy:
            self.fails(self.line(ca, proxy=proxy.url), words='407')

    def test_unknown_authority(self):
        with tempfile.TemporaryDirectory() as folder:
            line = self.line(ca, ca_bundle=PKI(folder, 'ec', 0).path('root.pem'))
            self.fails(line, words='certificate verify failed')
            self.assertEqual(ca.kinds(), [])
            line.set(ca_bundle=None)
            self.fails(line, words='certificate verify failed')
            self.works(line, env={'SSL_CERT_FILE': ca.bundle})
            line.set(ca_bundle=folder + '/none')
            self.fails(line, words=folder + '/none')

    def test_another_host_name(self):
        line = self.line(ca, directory_url=ca.directory_url.replace('127.0.0.1', '127.0.0.2'))
        self.fails(line, words='refused|mismatch|certificate')

    def test_nobody_there(self):
        self.fails(self.line(ca, directory_url='https://127.0.0.1:1/directory'),
                   words='127.0.0.1:1/directory: .*refused')

    def test_not_even_tls(self):
        with tempfile.TemporaryDirectory() as folder, Web(folder) as web:
            url = 'https://127.0.0.1:%d/directory' % web.port
            self.fails(self.line(ca, directory_url=url), words='SSL|TLS')


# ---- slow servers: all at once ------------------------------------------------------------------

class Slow(Case):

    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name

    def impatient(self, limit, seconds):
        """The program (a list) with another limit."""
        source, changed, program = os.path.dirname(SOURCE), 0, os.path.basename(SOURCE)
        os.mkdir(os.path.join(self.folder, limit))
        for name in {'acme_tiny.py', program} & set(os.listdir(source)):
            with open(os.path.join(source, name), encoding='utf-8') as file:
                text, count = re.subn(r'(?m)^%s = [0-9]+' % limit, '%s = %d' % (limit, seconds),
                                      file.read())
            changed += count
            with open(os.path.join(self.folder, limit, name), 'w', encoding='utf-8') as file:
                file.write(text)
        self.assertEqual(changed, 1, '%s has another name now' % limit)
        return support.PROGRAM[:-1] + [os.path.join(self.folder, limit, program)]

    def test_limits(self):
        cases = [(kind, 'dribble', {'seconds': 0.05}, kind, 'timed out')
                 for kind in ('directory', 'order', 'certificate')]
        cases += [(kind, 'delay', {'seconds': 60}, kind, 'timed out')
                  for kind in ('nonce', 'finalize')]
        cases += [
            ('order-poll', 'edit', {'edit': with_member('status', 'pending')}, 'pending',
             'still pending after'),
            ('finalize', 'edit', {'edit': with_member('status', 'processing')}, 'issue', ''),
            ('finalize', 'edit', {'edit': with_member('status', 'processing'), 'more': [(
                'order-poll', 'edit', {'nth': 2, 'edit': with_member('status', 'processing')})]},
             'issue for ever', 'still processing after'),
            ('finalize', 'edit', {'edit': with_member('status', 'processing'), 'more': [
                ('order-poll', 'edit', {'nth': 2, 'edit': with_member('status', 'processing')}),
                ('order-poll', 'headers', {'headers': {'Retry-After': '9999'}})]},
             'long Retry-After', 'still processing after'),
            # acme2certifier: the order stays pending, the authorization has no error
            ('order-poll', 'edit', {
                'edit': lambda data: data.pop('error', None) and data.update(status='pending'),
                'port': 1, 'more': [('authz', 'edit', {'edit': lambda data: [
                    challenge.pop('error', None) for challenge in data['challenges']] and None})]},
             'acme2certifier', 'Challenge did not pass for example.org: .*invalid'),
            # caddy: the challenge stays pending, but has an error
            ('order-poll', 'edit', {'edit': with_member('status', 'pending'), 'more': [
                ('authz', 'edit', {'nth': 2, 'edit': lambda data: data.update(
                    status='pending', challenges=[{
                        'type': 'http-01', 'status': 'pending', 'error': {
                            'type': 'urn:ietf:params:acme:error:dns', 'detail': 'no such host'}}])}
                 )]}, 'caddy', 'Challenge did not pass for example.org: .*no such host')]
        with contextlib.ExitStack() as stack:
            runs, usual = [], support.PROGRAM
            # Each has the limit that it is about shortened, and no other: on a slow machine it
            # could be the wrong one that is reached.
            requests = self.impatient('REQUEST_SECONDS', 1)
            polls = self.impatient('POLL_SECONDS', 2)
            for kind, what, args, name, words in cases:
                other, args = stack.enter_context(Series()), dict(args)
                line = stack.enter_context(Ready(other))
                other.http_port = args.pop('port', other.http_port)
                for more in [(kind, what, args)] + args.pop('more', []):
                    other.fault(*more[:2], times=None, **more[2])
                program = (requests if what in ('dribble', 'delay') else
                           polls if 'after' in words else usual)
                with mock.patch.object(support, 'PROGRAM', program):
                    runs.append((name, what, words, line, line.kept(), line.start('renew')))
            for name, what, words, line, before, process in runs:
                with self.subTest(name, what=what):
                    try:
                        out, err = process.communicate(timeout=PATIENCE)
                    finally:
                        with contextlib.suppress(ProcessLookupError):
                            os.killpg(process.pid, signal.SIGKILL)
                    self.assertEqual(os.listdir(line.path('challenges')), [])
                    if not words:
                        self.assertEqual((process.returncode, err), (0, ''))
                        continue
                    self.assertEqual((process.returncode, line.kept()), (1, before), err)
                    self.assert_one_line(line, err, words)


# ---- the program's own look at the challenge files ----------------------------------------------

# Run before the program: example.org is here, and its port 80 is another.
RESOLVER = '''
import socket
real, port = socket.getaddrinfo, %d
def here(host, service, *args, **options):
    if host.endswith('example.org'):
        host, service = '127.0.0.1', port if service == 80 else service
    return real(host, service, *args, **options)
socket.getaddrinfo = here
'''


class Elsewhere(Web):
    """Redirects to `target`, a URL without path; with `tls`, speaks TLS with a certificate that
    nobody trusts."""

    def __init__(self, directory, target=None, tls=False):
        super().__init__(directory)
        self.target, self.tls = target, tls

    def __enter__(self):
        web = self

        class Handler(http.server.BaseHTTPRequestHandler):
            timeout = PATIENCE

            def do_GET(self):
                web.hits.append((self.headers.get('Host'), self.path))
                body = (web.find(self.path) if not web.target else None) or b''
                self.send_response(302 if web.target else 200)
                if web.target:
                    self.send_header('Location', web.target + self.path)
                self.send_header('Content-Length', str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                """Requests are in `hits`."""

        super().__enter__()
        self.server.RequestHandlerClass = Handler
        if self.tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(PKI.get('ec', 1).path('tls.pem'), PKI.get('ec', 1).path(
                'tls.key'))
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        return self


class SelfCheck(Case):

    def resolving(self, port):
        return mock.patch.object(Ready, 'code', RESOLVER % port)

    def test_all_is_well(self):
        for check, hits in ('no', 1), ('warn', 2), ('require', 2):
            line = self.line(ca, self_check=check)
            with self.resolving(line.web.port):
                # (a proxy is for the CA only, and not for what the CA will ask directly)
                self.works(line, env={'http_proxy': 'http://127.0.0.1:1'})
            self.assertEqual(len(line.web.hits), hits)
            self.assertEqual({host for host, _ in line.web.hits}, {'example.org'})

    def test_not_found(self):
        with tempfile.TemporaryDirectory() as folder, Web(folder) as wrong:
            url = 'http://example.org/.well-known/acme-challenge/[A-Za-z0-9_-]+'
            for check in 'no', 'warn', 'require':
                line = self.line(ca, self_check=check)
                ca.clear()
                with self.resolving(wrong.port):
                    if check == 'require':
                        self.fails(line, words='%s.*127.0.0.1.*404' % url)
                        self.assertNotIn('challenge', ca.kinds())
                        continue
                    done = line.run('renew', check=0)
                if check == 'no':
                    self.assertEqual(done.stderr, '')
                else:
                    self.assert_one_line(line, done.stderr, '%s.*127.0.0.1.*404' % url)
                self.assertTrue(ca.issued[-1].names)
            self.assertEqual(len(wrong.hits), 2)

    def test_nobody_there_or_another_text(self):
        line = self.line(ca, self_check='require')
        with self.resolving(1):
            self.fails(line, words='127.0.0.1.*refused')
        with tempfile.TemporaryDirectory() as folder, Web(folder) as wrong:
            wrong.find = lambda path: b'\x1b[2J<html>' * 1000
            with self.resolving(wrong.port):
                self.fails(line, words='127.0.0.1.*another')

    def test_redirects(self):
        """As a CA does: from http to https, where any certificate will do."""
        line = self.line(ca, self_check='require')
        with Elsewhere(line.path('challenges'), tls=True) as secure, Elsewhere(
                None, 'https://www.example.org:%d' % secure.port) as plain:
            with self.resolving(plain.port):
                self.works(line)
            self.assertEqual((len(plain.hits), len(secure.hits)), (1, 1))


if __name__ == '__main__':
    unittest.main()
