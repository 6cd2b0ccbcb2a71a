"""Who writes the content of users and items, one file a provider; `registry` names them."""
