"""FBGEMM's embedding tables beside plain torch's."""
