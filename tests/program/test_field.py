"""What the field found: files from elsewhere, a CA that changes, lines that meet, keys and folders
with rights of their own. (DNS and services: test_dane.py.)"""
import contextlib
import os
import stat
import subprocess
import tempfile
import time
import unittest

from tests.world.case import Case, plant
from tests.world.fake_ca import FakeCA
from tests.world.line import CERTCHANGE, DAY, HOUR, KEYCHANGE, Line
from tests.world.support import (
    PATIENCE, PROGRAM, mode, only_if, openssl, pair_matches, read, write)


class Certificates(Case):
    def test_a_placeholder_that_signed_itself(self):
        """As package scripts leave it, good for ten years."""
        line = self.settled()
        openssl('req', '-x509', '-new', '-key', line.key(), '-subj', '/CN=example.org', '-days',
                '3650', '-addext', 'subjectAltName=DNS:example.org', '-out', line.crt())
        line.run('cron', check=0)
        self.assertEqual(len(self.orders()), 1)
        self.good()
        self.silent()

    def test_from_the_staging_ca_to_the_real_one(self):
        """The README's own way: the next run gets a certificate from there."""
        line = self.use()
        line.run('init', check=0)
        with FakeCA() as other:
            other.http_port = line.web.port
            line.set(directory_url=other.directory_url, ca_bundle=other.bundle)
            self.assertIn('another CA', line.run('cron', '-n', check=0).stdout)
            line.run('cron', check=0)
            self.assertEqual(len(other.issued), 1)
            self.assertEqual(line.run('cron', check=0).stdout, '')
            self.assertEqual(len(other.issued), 1)

    def test_a_hook_that_edits_the_certificate(self):
        """It is run once for it, not until the edits end."""
        line = self.use()
        line.hook(CERTCHANGE, 'echo "# for us" >> "$LIVE_CRT"')
        line.run('init', hooks=True, check=0)
        self.assertEqual(line.log(), [CERTCHANGE])
        self.silent(hooks=True)

    def test_what_is_issued_but_cannot_be_installed(self):
        """live.crt is a mount point, say: the certificate is not lost, and none is ordered anew."""
        line = self.settled()
        os.unlink(line.crt())
        os.mkdir(line.crt())    # nothing can be renamed to that
        write(os.path.join(line.crt(), 'x'), 'x')
        plant(line, self.ca, 'other', key='live')
        for hours in 0, 1, 26, 60:
            line.run('cron', check=1, after=hours * HOUR)
        self.assertEqual(self.orders(), [])     # that folder cannot even be read
        os.unlink(os.path.join(line.crt(), 'x'))
        os.rmdir(line.crt())
        line.run('renew', check=0)
        self.good()

    def test_what_cannot_be_put_in_its_place(self):
        """An immutable file, say: what was issued is downloaded until it can, not ordered anew."""
        line = self.settled()
        busy = """
import os
real = os.replace
def replace(source, target):
    if target == %r:
        raise OSError(16, os.strerror(16), target)
    real(source, target)
os.replace = replace
""" % line.crt()
        for _ in range(3):
            self.assertIn('live.crt', line.run('renew', code=busy, check=1).stderr)
        self.assertEqual(len(self.orders()), 1)
        self.assertEqual(os.listdir(line.path('backups')), [])
        line.run('renew', check=0)
        self.assertEqual(len(self.orders()), 1)
        self.good()
        self.silent()

    def test_backups_without_room(self):
        """Nothing is ordered that could not be put in its place."""
        line = self.settled()
        before = read(line.crt())
        done = line.run('renew', check=1, code="""
import os
real = os.open
def full(*args, **options):
    raise OSError(28, os.strerror(28), args[0])
def opened(path, *args, **options):
    return full(path) if str(path).startswith(%r) and args[0] & os.O_CREAT else real(
        path, *args, **options)
os.link, os.open = full, opened
""" % line.path('backups'))
        self.assertIn('No space left', done.stderr)
        self.assertEqual((self.orders(), read(line.crt())), ([], before))

    def test_an_order_that_takes_longer_than_the_run(self):
        """It is noted, and gone on with: none is placed beside it."""
        line = self.use()
        line.run('init', check=0)
        certificate = read(line.crt())
        self.ca.clear()
        self.ca.fault('certificate', 'status', status=500, times=2)
        for _ in range(2):
            line.run('renew', check=1)
        self.assertEqual(read(line.crt()), certificate)
        line.run('renew', check=0)
        self.assertEqual((len(self.orders()), len(self.ca.issued)), (2, 2))
        self.good()

    def test_an_order_that_failed_is_not_gone_on_with(self):
        line = self.use()
        line.run('init', check=0)
        self.ca.clear()
        self.ca.misissue = 'wrong_names'
        line.run('renew', check=1)
        self.ca.misissue = None
        line.run('renew', check=0)
        self.assertEqual(len(self.orders()), 3)
        self.good()


class Times(Case):
    def test_an_old_failure(self):
        """With nothing due any more it is none."""
        line = self.settled()
        line.set(domains='example.org other.example.org')
        self.ca.fault('order', 'problem', status=403, type='rejectedIdentifier')
        line.run('cron', check=1)
        line.run('status', check=1)
        line.set(domains='example.org')
        line.run('status', check=0)
        line.run('cron', check=0)
        self.silent()

    def test_a_server_that_wants_to_be_left_alone_for_a_year(self):
        """It is, but not until the certificate has ended."""
        line = self.use()
        plant(line, self.ca, age=70)    # 20 days left
        self.ca.fault('order', 'problem', status=429, type='rateLimited',
                      headers={'Retry-After': '31536000'})
        line.run('cron', check=1)
        self.ca.clear()
        for command in 'cron', 'renew':
            line.run(command, check=1, after=4 * DAY)
            self.assertEqual(self.ca.requests, [])
        line.run('cron', check=0, after=5 * DAY + HOUR)
        self.good()

    def test_our_clock_is_behind(self):
        """One is ordered, and kept."""
        line = self.use()
        self.ca.clock_offset = 2 * DAY
        line.run('init')
        done = line.run('renew')
        self.assertIn('2 days behind', done.stderr)
        self.assertEqual((done.returncode, len(self.orders())), (0, 2))
        for hours in 1, 30, 60:
            line.run('cron', after=hours * HOUR)
        self.assertEqual(len(self.orders()), 2)
        self.good()

    def test_a_ca_that_says_it_is_1970(self):
        """That does not keep us from a renewal."""
        line = self.use()
        plant(line, self.ca, age=70)
        self.ca.fault('*', 'headers', times=None, headers={'Date': 'Thu, 01 Jan 1970 00:00:09 GMT'})
        line.run('cron')
        self.assertEqual(len(self.ca.issued), 1)
        self.good()


class Keys(Case):
    def test_a_kind_that_the_config_does_not_ask_for_is_kept(self):
        line = self.use()
        plant(line, self.ca, kind='rsa')
        key = read(line.key())
        line.run('init', check=0)
        line.run('cron', check=0)
        self.assertEqual((read(line.key()), self.orders()), (key, []))

    def test_a_kind_that_is_no_longer_wanted_does_not_go_live(self):
        line = self.settled(staging_hours=48)
        line.set(key_type='ec-p384')
        line.run('cron', check=0)
        staged = read(line.key('staging'))
        line.set(key_type='ec-p256')
        self.assertIn("Moving 'staging.key' to the backups", line.run('cron', check=0).stdout)
        self.assertFalse(os.path.exists(line.key('staging')))
        self.kept(staged)
        live = read(line.key())
        line.run('cron', check=0, after=3 * DAY)
        self.assertEqual(read(line.key()), live)

    def test_one_from_the_future_is_told(self):
        line = self.settled()
        line.age('live', -1000)
        self.assertIn('future', line.run('cron', check=1).stderr)
        self.assertIn('future', line.run('status', check=1).stdout)
        line.age('live', 1)
        self.assertEqual(line.run('cron', check=0).stdout, '')
        self.silent()

    def test_a_new_key_is_dated_by_the_clock_of_the_ca(self):
        line = self.settled(staging_hours=48)
        self.ca.clock_offset = 10 * DAY
        line.run('renew', '--new-key', check=0)
        self.assertLess(abs(os.stat(line.key('staging')).st_mtime - time.time() - 10 * DAY), 60)

    def test_a_new_key_that_cannot_be_made_does_not_starve_the_services(self):
        line = self.settled([CERTCHANGE], staging_hours=48)
        plant(line, self.ca, key='live', age=0)     # a new certificate, which they lack
        line.age('live', 400)
        os.mkdir(line.key('staging') + '.tmp')
        for _ in range(2):
            done = line.run('cron', hooks=True, check=1)
            self.assertIn('staging.key', done.stderr)
        self.assertEqual(line.log(), [CERTCHANGE])

    def test_an_acl_goes_on_to_the_next_key(self):
        line = self.settled(staging_hours=48)
        acl = bytes.fromhex('02000000010006ffffffff02000400ffff000004000000ffffffff10000400ffffffff'
                            '20000000ffffffff'.replace('06ffffffff', '0600ffffffff'))
        try:
            os.setxattr(line.key(), 'system.posix_acl_access', acl)
        except OSError:
            return  # a file system without: the rights of the mode go on, as other tests see
        line.run('renew', '--new-key', check=0)
        self.assertEqual(os.getxattr(line.key('staging'), 'system.posix_acl_access'), acl)


class Lines(Case):
    def test_two_configs_of_the_same_files(self):
        line = self.settled()
        line.run('cron', check=0)
        with Line(self.ca, web=False, **{name: line.options[name] for name in (
                'certs', 'keys', 'backups', 'account_key', 'challenge_dir')}) as other:
            other.set(domains='www.example.org')
            done = other.run('cron', check=1)
            self.assertIn(line.config, done.stderr)
            self.assertIn('live.key', done.stderr)
            self.assertEqual(self.orders(), [])
            os.unlink(line.config)      # then they are the other's
            other.run('cron', check=0)

    def test_lines_that_share_folders_do_not_share_a_staged_key(self):
        line = self.settled(staging_hours=48)
        with Line(self.ca, web=False, live='www', staging_hours=48, **{
                name: line.options[name] for name in (
                    'certs', 'keys', 'backups', 'account_key', 'challenge_dir')}) as other:
            other.run('init', check=0)
            for one in line, other:
                one.run('renew', '--new-key', check=0)
            self.assertTrue(pair_matches(line.key('staging'), line.crt('staging')))
            self.assertTrue(pair_matches(line.key('www.staging'), line.crt('www.staging')))
            other.set(live='web', staging='staging')
            self.assertIn(line.config, other.run('init', check=1).stderr)

    def test_eight_at_once(self):
        """Each does it, or says that another does."""
        line = self.use()
        runs = [line.start('init') for _ in range(8)]
        ended = [(run.communicate(timeout=PATIENCE), run.returncode) for run in runs]
        self.assertLessEqual({status for _, status in ended}, {0, 75}, ended)
        self.assertIn(0, {status for _, status in ended})
        self.good()

    def test_init_in_a_restart_loop(self):
        line = self.use()
        self.ca.fault('order', 'problem', status=403, type='rejectedIdentifier', times=None)
        for _ in range(4):
            line.run('init', check=1)
        self.assertLessEqual(len(self.orders()), 2)


class Rights(Case):
    def test_a_lock_on_the_folder_of_the_account_key(self):
        """As the well-meant `flock FOLDER letsencrypt-tiny`."""
        line = self.use()
        line.run('init', check=0)
        import fcntl
        fd = os.open(line.folder.name, os.O_RDONLY)
        self.addCleanup(os.close, fd)
        fcntl.flock(fd, fcntl.LOCK_EX)
        line.run('renew', check=0)

    def test_locks_are_nobody_elses(self):
        line = self.use()
        line.run('init', check=0)
        for name in 'keys/live.lock', 'account.key.lock':
            self.assertEqual(mode(line.path(name)), 0o600)

    @only_if(not os.geteuid())
    def test_folders_and_files_that_others_can_change(self):
        line = self.settled()
        write(line.path('ca.pem'), read(line.options['ca_bundle']))
        line.set(ca_bundle=line.path('ca.pem'))
        for name, path in (('keys', 'keys'), ('certs', 'certs'), ('backups', 'backups'),
                           ('account-key', 'account.key'), ('ca-bundle', 'ca.pem')):
            with self.subTest(name):
                before = os.stat(line.path(path)).st_mode
                os.chmod(line.path(path), before | stat.S_IWOTH)
                self.refused('cron', parts=(name + ': ', line.path(path)))
                os.chmod(line.path(path), stat.S_IMODE(before))
        line.run('cron', check=0)

    @only_if(not os.geteuid())
    def test_who_owns_the_way_to_the_challenges_gets_no_file_of_root(self):
        """He may let the folder lead anywhere; what is written there is written by him."""
        line = self.use()
        os.mkdir(line.path('home'))
        os.mkdir(line.path('home', 'challenges'))
        line.set(challenge_dir=line.path('home', 'challenges'))
        os.chown(line.path('home'), 1, 1)
        os.chown(line.path('home', 'challenges'), 1, 1)
        for path in line.folder.name, line.path('home'):
            os.chmod(path, 0o755)
        line.web.__exit__()
        self.ca.reuse_authz = True
        seen = line.path('owners')
        line.run('init', code='''
import os
real = os.open
def watched(path, flags, *args, **options):
    if "challenges" in str(path):
        with open(%r, "a") as file:
            file.write("%%d\\n" %% os.geteuid())
    return real(path, flags, *args, **options)
os.open = watched
''' % line.path('owners'))
        line.web.__enter__()
        if os.path.exists(seen):
            self.assertEqual(set(read(seen).split()), {b'1'})
        # and a folder that he makes a link to one of root's
        os.rmdir(line.path('home', 'challenges'))
        os.mkdir(line.path('secret'), 0o755)
        os.symlink(line.path('secret'), line.path('home', 'challenges'))
        os.lchown(line.path('home', 'challenges'), 1, 1)
        line.run('renew')
        self.assertEqual(os.listdir(line.path('secret')), [])

    def test_an_account_key_in_a_folder_that_is_read_only(self):
        line = self.use()
        os.mkdir(line.path('account'))
        line.set(account_key=line.path('account', 'account.key'))
        line.run('init', check=0)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(line.path('account', 'account.key.lock'))
        os.chmod(line.path('account'), 0o500)
        line.run('renew', check=0)
        os.chmod(line.path('account'), 0o700)

    def test_files_that_are_another_s(self):
        """A temporary file that was there is none of ours to remove, if O_EXCL says so."""
        line = self.settled()
        os.mkdir(line.crt() + '.tmp')
        done = line.run('renew', check=1)
        self.assertIn('live.crt', done.stderr)
        self.assertTrue(os.path.isdir(line.crt() + '.tmp'))


class Words(Case):
    def test_a_hook_with_the_line_ends_of_another_system(self):
        line = self.settled()
        write(line.path('hook'), '#!/bin/sh\r\nexit 0\r\n', 0o755)
        line.set(post_certchange=line.path('hook'))
        self.refused('cron', hooks=True, parts=('post-certchange: ', '/bin/sh', 'Unix'))
        write(line.path('hook'), '#!/opt/nothing/python\n', 0o755)
        self.refused('cron', hooks=True, parts=('/opt/nothing/python', 'not there'))

    def test_a_ca_bundle_that_cannot_be_loaded(self):
        """Before anything is made."""
        line = self.use()
        write(line.path('garbage.pem'), 'garbage')
        for path in line.path('garbage.pem'), line.folder.name:
            line.set(ca_bundle=path)
            self.refused('init', parts=('ca-bundle: ', path))
            self.assertFalse(os.path.exists(line.path('keys')))

    def test_who_may_not_write_there_is_told_what_to_do(self):
        line = self.use()
        write(line.path('place'), 'a file')
        line.set(keys=line.path('place', 'keys'))
        self.refused('init', parts=('keys: ', line.path('place'), 'run init as root'))

    def test_an_account_key_of_certbot(self):
        line = self.settled()
        write(line.path('account.key'), '{"kty": "RSA", "n": "x", "e": "AQAB"}')
        done = line.run('renew', check=1)
        for part in 'JWK', 'certbot', 'PEM':
            self.assertIn(part, done.stderr)

    def test_an_account_key_that_no_ca_takes(self):
        line = self.settled()
        openssl('genpkey', '-algorithm', 'EC', '-pkeyopt', 'ec_paramgen_curve:P-521', '-out',
                line.path('account.key'))
        self.assertIn('ec-p521', line.run('renew', check=1).stderr)

    def test_an_empty_name_of_a_config(self):
        done = subprocess.run([*PROGRAM, '-c', '', 'cron'], stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, encoding='utf-8')
        self.assertEqual((done.returncode, done.stdout, len(done.stderr.splitlines())), (2, '', 1))

    def test_where_to_go_is_not_cut_off(self):
        line = self.settled()
        url = 'https://ca.example/unpause?jwt=' + 'x' * 1500
        self.ca.fault('order', 'problem', status=429, type='rateLimited',
                      detail='Visit %s to go on' % url)
        self.assertIn(url + ' ', line.run('renew', check=1).stderr)

    def test_a_command_has_a_help_of_its_own(self):
        for command, *words in (('renew', '--new-key', '--now', 'renew -k'), ('tlsa', '--check'),
                                ('cron', '--dry-run')):
            with tempfile.TemporaryFile() as out:
                subprocess.run([*PROGRAM, command, '--help'], stdout=out, check=True)
                out.seek(0)
                text = out.read().decode()
            for word in ('example: letsencrypt-tiny -c', *words):
                self.assertIn(word, text)
            self.assertNotIn('--nsupdate' if command != 'tlsa' else '--now', text)

    def test_options_before_the_command_or_after_it(self):
        line = self.settled([CERTCHANGE, KEYCHANGE])
        config = ['-c', line.config]
        for words in ([*config, '-k', '-v', 'cron'], ['cron', '-v', '-k', *config],
                      ['-k', 'cron', *config, *config]):
            done = subprocess.run([*PROGRAM, *words], stdout=subprocess.PIPE,
                                  stderr=subprocess.PIPE, encoding='utf-8')
            self.assertEqual((done.returncode, done.stdout, done.stderr), (0, '', ''))


class Audited(Case):
    """What was found by reading the program from top to bottom."""

    def test_a_key_that_stands_by_where_there_is_no_staging_time(self):
        """It stays staged until the live key is too old."""
        line = self.use(standby='yes', staging_hours=0, max_key_age_days=100)
        line.run('init', check=0)
        live, count = read(line.key()), len(self.ca.orders)
        self.assertTrue(os.path.exists(line.key('staging')))
        for hours in 1, 30:
            self.assertEqual(line.run('cron', check=0, after=hours * HOUR).stdout, '')
        self.assertEqual((read(line.key()), len(self.ca.orders)), (live, count))
        line.age('live', 101)
        line.run('cron', check=0)
        self.assertNotEqual(read(line.key()), live)

    def test_a_hook_that_puts_other_blocks_before_the_certificate(self):
        """The certificate is still the certificate: for renewals, ARI and revoke."""
        self.ca.ari = {'suggestedWindow': {'start': '2055-01-01T00:00:00Z',
                                           'end': '2055-01-02T00:00:00Z'}}
        self.addCleanup(setattr, self.ca, 'ari', None)
        line = self.use()
        line.hook(CERTCHANGE, """printf -- '-----BEGIN DH PARAMETERS-----\\nMAYCAQI=\\n%s\\n' \\
            '-----END DH PARAMETERS-----' | cat - "$LIVE_CRT" > "$LIVE_CRT.x"
            cat "$LIVE_CRT.x" > "$LIVE_CRT" """)
        line.run('init', hooks=True, check=0)
        self.assertTrue(read(line.crt()).startswith(b'-----BEGIN DH'))
        line.run('renew', hooks=True, check=0)
        self.assertTrue(self.ca.orders[-1].replaces)
        self.assertIn('Revoked', line.run('revoke', check=0).stdout)

    def test_a_host_that_cannot_be_one(self):
        for host in 'mx..example.org', 'x' * 64 + '.example.org':
            self.use(served=host + ':25')
            self.refused('init', status=2, parts=('served: expected',))

    def test_a_look_of_which_no_note_can_be_made(self):
        """It is not tried again in the same run, and told."""
        line = self.settled(served='127.0.0.1:1')
        line.run('cron', check=1)
        os.mkdir(line.state_file() + '.tmp')
        done = line.run('cron', check=1, after=2 * DAY, timeout=PATIENCE)
        self.assertNotIn('does not settle', done.stderr)
        self.assertIn('cannot be written', done.stderr)
        os.rmdir(line.state_file() + '.tmp')

    def test_a_service_that_is_away_is_told_once_a_day(self):
        """Though openssl words it with the number of a thread, another one each time."""
        line = self.settled(served='127.0.0.1:1')
        self.assertIn('cannot be reached', line.run('cron', check=1).stderr)
        for hours in 1, 5:
            self.assertEqual(line.run('cron', check=1, after=hours * HOUR).stderr, '')
        self.assertIn('cannot be reached', line.run('cron', check=1, after=25 * HOUR).stderr)

    def test_a_file_system_without_access_lists(self):
        """What cannot be given is said, and stops nothing; but a disk that fails does."""
        line = self.settled()
        code = """
import os
def no(*args, **options):
    raise OSError(%d, os.strerror(%d))
os.fchown = no
"""
        before = read(line.key())
        done = line.run('renew', '--new-key', '--now', check=0, code=code % (95, 95))
        self.assertIn('cannot be given owner', done.stdout)
        self.assertNotEqual(read(line.key()), before)
        self.assertEqual(mode(line.key()), 0o600)
        done = line.run('renew', '--new-key', '--now', check=1, code=code % (5, 5))
        self.assertIn('cannot be written', done.stderr)

    @only_if(os.geteuid() == 0)
    def test_a_link_that_leads_to_itself(self):
        line = self.settled()
        os.rename(line.path('backups'), line.path('kept'))
        os.symlink('backups', line.path('backups'))
        self.refused('cron', parts=('backups: ', 'symbolic links'))

    def test_a_tab_in_the_first_line_of_a_hook(self):
        line = self.use()
        line.set(post_certchange=write(line.path('hook'), '#!/bin/sh\t-e\nexit 0\n', 0o755))
        line.run('init', hooks=True, check=0)

    def test_an_order_that_the_ca_has_forgotten(self):
        """The same run orders anew."""
        line = self.use()
        self.ca.fault('finalize', 'status', status=500, body=b'')
        line.run('init', check=1)
        self.ca.fault('order-poll', 'status', status=404, body=b'{"detail": "no such order"}')
        line.run('renew', check=0)
        self.good()

    def test_a_change_of_the_account_key_that_the_ca_does_not_offer(self):
        """No key is left that every later run would ask about."""
        line = self.settled()
        self.ca.fault('directory', 'edit', edit=lambda found: found.pop('keyChange') and None)
        self.assertIn('offers no keyChange', line.run('account', '--new-key', check=1).stderr)
        self.assertFalse(os.path.exists(line.path('account.key.new')))

    def test_what_is_overdue_is_called_so(self):
        line = self.settled()
        plant(line, self.ca, key='live', age=80)
        self.assertIn('overdue: Obtaining', line.run('status', check=1).stdout)


if __name__ == '__main__':
    unittest.main()
