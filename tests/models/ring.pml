/* spin: -DRECORDS=5 -DSLOTS=2 -DCLOCK=0 */
/* spin: -DRECORDS=4 -DSLOTS=1 -DCLOCK=0 */
/* spin: -DRECORDS=4 -DSLOTS=2 -DCLOCK=1 */
/* spin-must-fail: -DRECORDS=3 -DSLOTS=1 -DNO_FENCE -DCLOCK=0 */
/* spin-must-fail: -DRECORDS=3 -DSLOTS=1 -DEPOCH_AFTER -DCLOCK=0 */

/* The command ring (src/exec/base/ring.c) with its two eventcounts (event.c), one producer, one consumer, both sleeping
 * whenever they can't go on. Checked: each record arrives once, in order, uncorrupted (FIFO); none is overwritten before it
 * has been released; nobody sleeps for ever (a lost wake-up is an invalid end state).
 *
 * Spin's memory is sequentially consistent. What a machine with store buffers may do is added: each thread's stores to
 * tail and head go through a buffer of one entry, which empties at any time, at a fence or a read-modify-write, or when it
 * must take another store (which keeps stores in order, as release does). Without the fences in notify and wait the model has a lost
 * wake-up, and a waiter that reads the epoch after the condition too: the must-fail lines check that it can find one. */

#define FREE 255

byte slot[SLOTS];       /* payloads; FREE: not written, or released */
byte tail, head;        /* records published, records released */
byte filled_epoch, filled_waiters;
byte drained_epoch, drained_waiters;
byte delivered;

/* A store buffer: which variable, and its new value. */
#define NONE 0
#define TAIL 1
#define HEAD 2
byte buffered[2];
byte buffered_value[2];

inline flush(me) {
    atomic {
        if
        :: buffered[me] == TAIL -> tail = buffered_value[me]
        :: buffered[me] == HEAD -> head = buffered_value[me]
        :: else
        fi;
        buffered[me] = NONE
    }
}

inline store(me, which, value) {
    flush(me);
    atomic { buffered[me] = which; buffered_value[me] = value }
}

#ifdef NO_FENCE
#define fence(me) skip
#else
#define fence(me) flush(me)
#endif

/* waiters += 1 is a read-modify-write: on the machine it empties the buffer. */
inline notify(me, waiters, epoch) {
    fence(me);
    if
    :: waiters == 0
    :: waiters != 0 ->
        flush(me);
        atomic { epoch = (epoch + 1) % 8 } /* and wakes all: sleepers wait for epoch != e */
    fi
}

/* Sleeps until `condition`. Spinning first would only add harmless looks. A futex may also wake spuriously: CLOCK
 * models that and timeouts. */
inline await(me, condition, waiters, epoch, e) {
    if
    :: condition
    :: else ->
        flush(me);
        waiters = waiters + 1;
        do
        ::
#ifndef EPOCH_AFTER
            e = epoch;
#endif
            fence(me);
            if
            :: condition -> break
            :: else
            fi;
#ifdef EPOCH_AFTER
            e = epoch;
#endif
            if
            :: epoch != e
#if CLOCK
            :: spurious > 0 -> spurious = spurious - 1
#endif
            fi
        od;
        flush(me);
        waiters = waiters - 1
    fi
}

proctype buffers() {
end:
    do
    :: buffered[0] != NONE -> flush(0)
    :: buffered[1] != NONE -> flush(1)
    od
}

proctype producer() {
    byte write = 0, e, spurious = 2;
    do
    :: write == RECORDS -> break
    :: else ->
        await(0, (write - head < SLOTS), drained_waiters, drained_epoch, e);
        assert(slot[write % SLOTS] == FREE); /* released before it is overwritten */
        slot[write % SLOTS] = write;
        write = write + 1;
        store(0, TAIL, write);
        notify(0, filled_waiters, filled_epoch)
    od;
    flush(0)
}

proctype consumer() {
    byte read = 0, e, spurious = 2;
    do
    :: read == RECORDS -> break
    :: else ->
        await(1, (tail != read), filled_waiters, filled_epoch, e);
        assert(slot[read % SLOTS] == read); /* in order, whole, once */
        slot[read % SLOTS] = FREE;
        read = read + 1;
        store(1, HEAD, read);
        notify(1, drained_waiters, drained_epoch)
    od;
    flush(1);
    delivered = read
}

init {
    byte i = 0;
    atomic {
        do
        :: i < SLOTS -> slot[i] = FREE; i = i + 1
        :: else -> break
        od;
        run buffers();
        run producer();
        run consumer()
    }
}
