"""The only code that talks to the API server: requests, lists and watches, leases. It knows nothing of groups."""
