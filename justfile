# The lanes of checks. `.ci/run` and the hosted workflow run them; CONTRIBUTING.md describes them.
#
# Every check runs through `.ci/step`, which prints its time and records its result in target/ci.

set shell := ["bash", "-euo", "pipefail", "-c"]

release := justfile_directory() / "target/ci/wsbalancer"
faults := justfile_directory() / "target/ci/wsbalancer-with-fault-hooks"

# Evidence scripts that mostly wait: they use a third of a processor or less, and assert no figures of
# speed or memory. `just shows` runs two of them at a time, the longest first.
waiting := '''
    tls
    dns
    routes
    libraries
    affinity
    dead-clients --short
    spread
    traefik
    dashboard
    limits
    proxy-protocol
    handshakes
    smuggling
    dockerfile --no-build
    forwarded
'''

# Evidence scripts that measure times, memory or distributions, or keep both processors busy.
# `just shows` runs them alone.
measuring := '''
    integrity
    slow-reader
    streaming
    slow-headers
    failing-pods
    socketio
    faults
    balancing --short
    drain --short
    idle-cost --short
    reloads --short
    handover --short
    panics --short
    soak --short
    autobahn --short
'''

# Lists the lanes.
_default:
    @just --list --unsorted

# Checks format, lints, documentation, dependencies and spelling.
lint:
    #!/usr/bin/env bash
    failed=0
    check() { .ci/step "$@" || failed=1; }
    check format cargo fmt --check
    check format-fuzz cargo fmt --check --manifest-path fuzz/Cargo.toml
    check ruff-check ruff check tests/show
    check ruff-format ruff format --check tests/show
    check typos typos
    check deny cargo deny --locked check licenses bans sources
    check clippy cargo clippy --locked --all-targets -- -D warnings
    check clippy-fault-hooks cargo clippy --locked --all-targets --features fault-hooks -- -D warnings
    RUSTDOCFLAGS="-D warnings" check rustdoc cargo doc --locked --no-deps --document-private-items
    exit "$failed"

# Runs all Rust tests. A panic that no test notices fails the lane, so nothing is captured.
test:
    #!/usr/bin/env bash
    failed=0
    check() { .ci/step "$@" || failed=1; }
    RUST_TEST_NOCAPTURE=1 check tests cargo test
    check no-panics bash -c '! grep -n "panicked at" target/ci/tests.log'
    check tests-fault-hooks cargo test --features fault-hooks --test it supervision
    exit "$failed"

# Builds the tests without running them.
build-tests:
    cargo test --no-run
    cargo test --no-run --features fault-hooks --test it

# Builds the release binaries and the benchmarks.
build-release: binaries
    cargo bench --locked --no-run --bench simulation --bench peers

# Builds the release binary, and a second one whose control actors can be made to panic.
binaries:
    @mkdir -p target/ci
    cargo build --locked --release --features fault-hooks
    cp target/release/wsbalancer {{ faults }}
    cargo build --locked --release
    cp target/release/wsbalancer {{ release }}

# Checks every shipped configuration with the release binary.
configs: binaries
    @WSBALANCER_SERVICES=http://127.0.0.1:3001 .ci/step config-default {{ release }} check
    @for file in config/*.toml; do \
        [ "$file" = config/default.toml ] || .ci/step "config-$(basename "$file" .toml)" {{ release }} check --config "$file"; \
    done

# Runs one evidence script: `just show balancing --short`.
show NAME *ARGS:
    tests/show/{{ NAME }} {{ ARGS }}

# Runs every evidence script in its short form.
shows: binaries
    #!/usr/bin/env bash
    set -uo pipefail
    export WSBALANCER_BIN={{ release }} WSBALANCER_FAULTS_BIN={{ faults }}
    run() { xargs -P "$1" -L 1 bash -c '.ci/step --buffer "show-$0" "tests/show/$0" "$@" < /dev/null'; }
    failed=0
    run 2 <<< '{{ trim(waiting) }}' || failed=1
    run 1 <<< '{{ trim(measuring) }}' || failed=1
    exit "$failed"

# Searches with every fuzz target for a short time. With one seed, so that a new find becomes an issue and does not break main.
fuzz SECONDS="20":
    #!/usr/bin/env bash
    set -uo pipefail
    for target in fuzz/targets/*.rs; do basename "$target" .rs; done |
        xargs -P 2 -I {} .ci/step --buffer fuzz-{} fuzz/run --seconds {{ SECONDS }} --seed 1 {}

# Runs the simulation, and the comparison with HAProxy and nginx in its short form.
bench: binaries
    @.ci/step simulation cargo bench --locked --bench simulation -- --assert
    @WSBALANCER_BIN={{ release }} .ci/step peers cargo bench --locked --bench peers -- --short --assert
