#!/usr/bin/env bash
# All tests. Each suite's output goes to build/logs; here a line per suite, a table, and "N passed, N failed".
#
#   scripts/test.sh [SUITE...]     of: unit sanitized race python layering models
#
# CI=true turns warnings into errors.
set -uo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$ROOT"
export PATH="$VENV/bin:$PATH"

suites="${*:-layering models unit sanitized race python}"
werror=OFF
[ -z "${CI:-}" ] || werror=ON
passed=0
failed=0
table=()

# record NAME PASSED FAILED SECONDS [NOTE]
record() {
    passed=$((passed + $2))
    failed=$((failed + $3))
    table+=("$(printf '  %-44s %7d %7d %6d s  %s' "$1" "$2" "$3" "$4" "${5:-}")")
    [ "$3" = 0 ] || echo "  $1: $3 FAILED"
}

# build PRESET TARGET...
build() {
    local preset="$1"
    shift
    cmake --preset "$preset" -DTERRA_WERROR=$werror && cmake --build "build/$preset" --target "$@"
}

# ThreadSanitizer and AddressSanitizer need an address space that older runtimes understand.
plain_addresses() {
    if setarch "$(uname -m)" -R true 2>/dev/null; then
        setarch "$(uname -m)" -R "$@"
    else
        "$@"
    fi
}

# criterion NAME PRESET: builds and runs every Criterion program of a preset.
criterion() {
    local name="$1" preset="$2" ok=0 bad=0 start=$SECONDS program log synthesis tested failing crashing
    if ! step "build-$preset" "$name: build ($preset)" build "$preset" unit_tests; then
        record "$name" 0 1 $((SECONDS - start)) "does not build"
        return
    fi
    for program in "build/$preset"/tests/test_*; do
        [ -f "$program" ] && [ -x "$program" ] || continue
        [ -e "tests/$(basename "$program").c" ] || continue
        log="$LOGS/$preset-$(basename "$program").log"
        plain_addresses timeout 600 "$program" -j2 >"$log" 2>&1 </dev/null
        local rc=$?
        synthesis="$(sed 's/\x1b\[[0-9;]*m//g' "$log" | grep 'Synthesis:' | tail -1)"
        if [[ "$synthesis" =~ Tested:\ ([0-9]+).*Passing:\ ([0-9]+).*Failing:\ ([0-9]+).*Crashing:\ ([0-9]+) ]]; then
            ok=$((ok + BASH_REMATCH[2]))
            local wrong=$((BASH_REMATCH[3] + BASH_REMATCH[4]))
            [ $rc = 0 ] || [ $wrong != 0 ] || wrong=1
            bad=$((bad + wrong))
        else
            bad=$((bad + 1))
            local wrong=1
        fi
        if [ $wrong != 0 ]; then
            echo "--- $log:"
            tail -n 40 "$log"
        fi
    done
    record "$name" $ok $bad $((SECONDS - start)) "$(cd tests && find . -name 'test_*.c' | wc -l) programs"
}

run_race() {
    local ok=0 bad=0 start=$SECONDS program log
    if ! step build-tsan "race programs: build (tsan)" build tsan race_programs; then
        record "race programs under ThreadSanitizer" 0 1 $((SECONDS - start)) "does not build"
        return
    fi
    for source in tests/race_*.c; do
        [ -e "$source" ] || continue
        program="build/tsan/tests/$(basename "$source" .c)"
        log="$LOGS/tsan-$(basename "$program").log"
        # libgomp isn't instrumented: one OpenMP thread.
        if OMP_NUM_THREADS=1 TSAN_OPTIONS="halt_on_error=1 second_deadlock_stack=1 ${TSAN_OPTIONS:-}" \
            plain_addresses timeout 300 "$program" >"$log" 2>&1 </dev/null; then
            ok=$((ok + 1))
        else
            bad=$((bad + 1))
            echo "--- $log:"
            tail -n 40 "$log"
        fi
    done
    record "race programs under ThreadSanitizer" $ok $bad $((SECONDS - start))
}

run_python() {
    local start=$SECONDS log="$LOGS/pytest.log" ok=0 bad=0 skipped=0 summary
    printf '  pytest …\n'
    # From another folder: what is tested is the installed package.
    if [ -t 1 ]; then
        (cd build && python -m pytest -c "$ROOT/pyproject.toml" --rootdir "$ROOT" -q "$ROOT/tests/py" </dev/null) 2>&1 | tee "$log"
    else
        (cd build && python -m pytest -c "$ROOT/pyproject.toml" --rootdir "$ROOT" -q "$ROOT/tests/py" </dev/null) >"$log" 2>&1
    fi
    local rc=$?
    summary="$(grep -E '(passed|failed|error|skipped).* in [0-9.]+' "$log" | tail -1)"
    [[ "$summary" =~ ([0-9]+)\ passed ]] && ok=${BASH_REMATCH[1]}
    [[ "$summary" =~ ([0-9]+)\ failed ]] && bad=${BASH_REMATCH[1]}
    [[ "$summary" =~ ([0-9]+)\ error ]] && bad=$((bad + BASH_REMATCH[1]))
    [[ "$summary" =~ ([0-9]+)\ skipped ]] && skipped=${BASH_REMATCH[1]}
    [ $rc = 0 ] || [ "$bad" != 0 ] || bad=1
    [ "$bad" = 0 ] || { echo "--- $log:"; tail -n 60 "$log"; }
    record "pytest" "$ok" "$bad" $((SECONDS - start)) "$skipped skipped"
}

run_layering() {
    local start=$SECONDS
    if python3 tests/check_layering.py >"$LOGS/layering.log" 2>&1; then
        record "layering check" 1 0 $((SECONDS - start))
    else
        cat "$LOGS/layering.log"
        record "layering check" 0 1 $((SECONDS - start))
    fi
}

# One run of a model: spin's options, and what it must find: `spin` no error, `spin-must-fail` one.
run_model() {
    local model="$1" kind="$2" options="$3" dir="$4"
    mkdir -p "$dir"
    # shellcheck disable=SC2086
    (cd "$dir" && rm -f ./*.trail && spin $options -a "$ROOT/$model" &&
        gcc -O2 -w -DSAFETY -DCOLLAPSE -o pan pan.c && timeout 300 ./pan -m1000000) >"$dir/log" 2>&1 </dev/null || return 1
    cat "$dir/log"
    ! grep -q 'max search depth too small' "$dir/log" || return 1
    if [ "$kind" = spin ]; then
        grep -q 'errors: 0' "$dir/log"
    else
        grep -q 'errors: 1' "$dir/log"
    fi
}

# Each model lists its runs in its first lines: /* spin: -DN=2 */ or /* spin-must-fail: -DN=2 */.
run_models() {
    local ok=0 bad=0 start=$SECONDS model log kind options number=0
    for model in tests/models/*.pml; do
        [ -e "$model" ] || continue
        while IFS='|' read -r kind options; do
            number=$((number + 1))
            log="$LOGS/model-$(basename "$model" .pml)-$number.log"
            if run_model "$model" "$kind" "$options" "$ROOT/build/models/$number" >"$log"; then
                ok=$((ok + 1))
            else
                bad=$((bad + 1))
                echo "--- $log: $kind $options"
                tail -n 30 "$log"
            fi
        done < <(sed -nE 's#^/\* (spin|spin-must-fail): *(.*[^ ]) *\*/$#\1|\2#p' "$model")
    done
    record "models (spin)" $ok $bad $((SECONDS - start))
}

for suite in $suites; do
    case "$suite" in
        layering) run_layering ;;
        models) run_models ;;
        unit) criterion "Criterion suites" debug ;;
        sanitized) criterion "Criterion suites under ASan+UBSan" asan ;;
        race) run_race ;;
        python) run_python ;;
        *) die "no such suite: $suite" ;;
    esac
done

printf '\n  %-44s %7s %7s %8s\n' suite passed failed time
printf '%s\n' "${table[@]}"
echo
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
