"""The admin listener: /livez, /readyz, /metrics, /status. Read-only, on an address of its own.

With one worker it lives in the gateway's own process. Metrics (an addon behind the chain) counts; `Metrics.report()`
adds what is looked up when somebody asks (readings.Sources: callables, so that nothing here knows the engine).

With several workers it lives in the supervisor, and each worker has Metrics and a socket pair:

    supervisor                                     worker
    here, there = socket.socketpair()              metrics = Metrics(sources)          # an observer of the gateway
    await workers.add(pid, here)                   reporter = Reporter(there, metrics.snapshot)
    report = await workers.report()                await reporter.start()
    await workers.remove(pid)  # it has ended      metrics.draining = True             # when it shuts down
                                                   await reporter.close()              # last: after Metrics.done

`report.merge(snapshots, retired)` is the pure part. Counters and histograms are added; those of a worker that has ended
are kept (`report.retire`), so that totals never fall; gauges are merged as families.FAMILIES says. Ready is whoever has
at least one worker that is ready, and none that reports a missing policy.
"""
