"""The protocols of clients: one package each; what several of them share stands beside those."""
