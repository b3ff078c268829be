"""Requests and responses on the wire, connections and transports."""
