"""The router: one address for clients in front of prefill and decode workers that come and go.

    options.py    command line → frozen RouterOptions
    pair.py       states of a request's two legs and the one pure decision on them
    body.py       what is read from and added to a request's body (pure)
    events.py     where a server-sent event ends (pure)
    health.py     when a worker counts as healthy, unhealthy, lost (pure)
    policy.py     which worker of several (pure)
    errors.py     what the client is told
    workers.py    live workers and their probes
    leg.py        one HTTP exchange with one worker
    stall.py      the deadline of a request: time without progress
    dispatch.py   a request from its body to the last byte of its answer
    metrics.py, app.py, serve.py    counters, routes, process

It never imports torch.
"""
