# shellcheck shell=bash
# What the scripts beside this file share; it is sourced, not run. Each of them tells which Debian packages it needs,
# how a fresh token comes up below a directory, and, if it can, how the device goes away and comes back. This file
# installs, starts processes, ends those it started and no others, and writes module.env, where the contract suite finds
# what it needs.
set -euo pipefail

# For a throwaway test token that lives below one directory. Nothing else has these PINs.
# shellcheck disable=SC2034 # The scripts use them.
readonly token=contract-suite pin=24681357 so_pin=13572468
readonly script=scripts/modules/${0##*/}
dir=
told=

fail() {
    echo "$script: $1" >&2
    told=yes
    exit 1
}

# Installs those of the packages that are missing.
install_packages() {
    local package missing=()
    for package in "$@"; do
        [[ "$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null)" == installed ]] ||
            missing+=("$package")
    done
    [[ ${#missing[@]} -gt 0 ]] || return 0
    command -v apt-get >/dev/null || fail "missing: ${missing[*]}; they are Debian's, and this machine has no apt-get"
    local as_root=()
    if [[ $EUID -ne 0 ]]; then
        sudo -n true 2>/dev/null || fail "missing: ${missing[*]}; run \`$script install\` as root"
        as_root=(sudo -n)
    fi
    local apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=120)
    # Lists that cannot be refreshed may still do; the installation itself decides.
    "${apt[@]}" update </dev/null >&2 || true
    "${apt[@]}" install --yes --no-install-recommends "${missing[@]}" </dev/null >&2 ||
        fail "apt-get could not install ${missing[*]}"
}

# Prints packages with their versions in one line.
versions_of() {
    dpkg-query --show --showformat='${Package} ${Version}, ' "$@" 2>/dev/null | sed 's/, $/\n/' ||
        fail "not installed; run \`$script install\`"
}

# Prints when a process started, in ticks since the machine did, so that a later process is not taken for it.
started_at() {
    sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d ' ' -f 20
}

# Starts a command in the background as the first of a process group, and records it under a name.
launch() {
    local name=$1
    shift
    setsid "$@" </dev/null >>"$dir/$name.log" 2>&1 &
    disown
    echo "$! $(started_at $!) $name" >>"$dir/pids"
}

# Ends the recorded processes of these names, or all, newest first, with what they have forked.
end() {
    local signal=$1 pid started name kept=
    shift
    [[ -f $dir/pids ]] || return 0
    while read -r pid started name; do
        if [[ $# -gt 0 && " $* " != *" $name "* ]]; then
            kept="$pid $started $name"$'\n'$kept
        elif [[ "$(started_at "$pid" || true)" == "$started" ]]; then
            end_group "$signal" "$pid"
        fi
    done < <(tac "$dir/pids")
    printf %s "$kept" >"$dir/pids"
}

end_group() {
    local attempt
    kill -s "$1" -- "-$2" 2>/dev/null || true
    for attempt in {1..100}; do
        [[ -n "$(living_of_group "$2")" ]] || return 0
        [[ $attempt -ne 60 ]] || kill -s KILL -- "-$2" 2>/dev/null || true
        sleep 0.05
    done
    fail "process $2 does not end"
}

living_of_group() {
    sed 's/.*) //' /proc/[0-9]*/stat 2>/dev/null | grep "^[^XZ] [0-9]* $1 " || true
}

# Waits until a command succeeds.
await() {
    local what=$1 deadline=$((SECONDS + 20))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < deadline)) || fail "waited 20 s for $what; its logs are in $dir"
        sleep 0.05
    done
}

# Empties the directory, which must be a new one or one of ours.
make_fresh() {
    [[ -f $dir/pids || ! -e $dir || -z "$(ls -A "$dir")" ]] || fail "$dir holds something else; name a new directory"
    # Of addresses it becomes a part, and a socket's path has at most 107 bytes.
    [[ $dir =~ ^[A-Za-z0-9._/-]{1,90}$ ]] || fail "$dir is too long or has characters that an address cannot"
    end TERM
    rm -rf "$dir"
    mkdir -p "$dir"
    : >"$dir/pids"
}

# Writes module.env: the module, the token, how many sessions to open, and what is to stand in the environment of a
# process that uses the module.
write_env() {
    local module=$1 sessions=$2
    shift 2
    [[ -f $module ]] || fail "there is no $module; run \`$script install\`"
    printf '%s\n' "MODULE=$module" "TOKEN=$token" "PIN=$pin" "SESSIONS=$sessions" "${@/#/ENV_}" >"$dir/module.env"
}

start() {
    about >/dev/null
    make_fresh
    trap '[[ -n $told ]] || echo "$script: could not start; its logs are in $dir" >&2; end KILL' EXIT
    set_up
    trap - EXIT
}

# A script defines `packages`, `set_up` and `about`, and those of the following that its module has.
build() { :; }
clean_up() { :; }
take_away() { fail "this one cannot be taken away"; }
bring_back() { take_away; }

# Runs the command line of such a script.
run() {
    [[ $# -ne 2 ]] || dir=$(realpath --canonicalize-missing -- "$2")
    case "${1-} $#" in
        "install 1")
            install_packages "${packages[@]:?}"
            build
            ;;
        "about 1") about ;;
        "start 2") start ;;
        "stop 2")
            end TERM
            clean_up
            ;;
        "break 2" | "mend 2")
            [[ -f $dir/module.env ]] || fail "nothing was started in $dir"
            if [[ $1 == break ]]; then take_away; else bring_back; fi
            ;;
        *)
            echo "usage: $script install | about | start DIR | stop DIR | break DIR | mend DIR" >&2
            exit 2
            ;;
    esac
}
