"""Requests and responses as they are transferred, connections and transports."""
