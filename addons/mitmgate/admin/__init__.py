"""The admin listener: /livez, /readyz, /metrics, /status, the assertions' keys. Read-only, on an address of its own.

With one worker it lives in the gateway's own process: `addon.Admin` is an observer of the gateway that binds, counts
(Metrics) and serves (Listener). `Metrics.report()` adds what is looked up when somebody asks (readings.Sources:
callables, so that nothing here knows the engine).

With several workers the listener lives in the supervisor, and each worker is given one end of a socket pair:

    supervisor                                              worker
    here, there = socket.socketpair()                       admin = Admin(link)         # `there`, inherited
    workers = Workers()                                     gateway(path, admin=admin)
    await workers.add(pid, here)                            admin.draining = lambda: drain.begun
    listener = Listener(host, bind(host, port), workers.report)
    listener.start()
    await workers.remove(pid)       # it has ended: its totals stay
    await listener.close()          # last of all

`report.merge(snapshots, retired)` is the pure part. Counters and histograms are added; those of a worker that has ended
are kept (`report.retire`), so that totals never fall; gauges are merged as families.FAMILIES says. Ready is whoever has
at least one worker that is ready, and none that reports a missing policy.
"""
