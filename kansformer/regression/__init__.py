"""Small KANs on tables: scaling, training, and estimators in the manner of scikit-learn."""
