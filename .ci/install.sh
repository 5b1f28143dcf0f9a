#!/bin/bash
# The real parts that CI tests against, into the folder $1: tools/ (ruff), peers/ (acme-tiny,
# certbot) and pebble/ (Pebble with its DNS server). Nothing of it is left on the machine but
# packages of its own release.
set -euo pipefail
work=$1

export DEBIAN_FRONTEND=noninteractive
apt-get -qq update
apt-get -qq install --no-install-recommends --no-upgrade \
    ca-certificates git help2man mandoc openssl python3 python3-venv shellcheck strace
# The newest archive keys of this release: they must know the newer suite below.
apt-get -qq install --no-install-recommends debian-archive-keyring

for venv in 'tools ruff==0.17.6' 'fuzz atheris' 'peers acme-tiny==5.0.3 certbot==5.8.0'; do
    read -r folder packages <<<"$venv"
    /usr/bin/python3 -m venv "$work/$folder"
    # shellcheck disable=SC2086  # several packages
    "$work/$folder/bin/pip" --quiet --disable-pip-version-check install $packages
done

# Pebble from a newer suite of the mirror this machine uses, with lists and state of its own, so
# that the machine's packages stay what they are. The program asks for an older libc than ours.
# shellcheck disable=SC2016  # apt-get's variable, not the shell's
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Label: Debian' |
    head -n 1)
keys=/usr/share/keyrings/debian-archive-keyring.gpg
for suite in forky sid; do
    apt=$work/apt-$suite
    mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
    echo "deb [signed-by=$keys] $mirror $suite main" >"$apt/sources.list"
    options=(-o "Dir::Etc::sourcelist=$apt/sources.list" -o Dir::Etc::sourceparts=-
        -o "Dir::State::lists=$apt/lists" -o "Dir::Cache=$apt/cache" -o APT::Sandbox::User=root)
    if apt-get -qq "${options[@]}" update &&
        (cd "$apt" && apt-get -qq "${options[@]}" download pebble); then
        break
    fi
done
deb=$(ls "$apt"/pebble_*.deb)
version=$(dpkg-deb --field "$deb" Version)
dpkg --compare-versions "$version" ge 2.10
dpkg-deb --extract "$deb" "$work/pebble"

grep PRETTY_NAME /etc/os-release
echo "$(nproc) processors; $(openssl version); $(/usr/bin/python3 --version)"
echo "Pebble $version from $suite; acme-tiny 5.0.3; $("$work/peers/bin/certbot" --version)"
