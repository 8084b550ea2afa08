"""K-means that does not depend on the order of summation."""

from __future__ import annotations

import numpy as np

from dataprep.filters.clusters import QUANTUM, find_nearest, quantise, train_centroids


def test_products_of_quantised_vectors_are_exact() -> None:
    rng = np.random.default_rng(0)
    vector_ND = quantise(rng.normal(size=(300, 1152)).astype(np.float16))
    exact_NN = vector_ND.astype(np.int64) @ vector_ND.astype(np.int64).T
    assert np.abs(exact_NN).max() < 2**24 and exact_NN.diagonal().min() > 0.99 * QUANTUM**2
    shuffled_D = rng.permutation(1152)
    for columns_D in (slice(None), shuffled_D):  # whatever the order of summation
        float_ND = np.ascontiguousarray(vector_ND[:, columns_D]).astype(np.float32)
        np.testing.assert_array_equal((float_ND @ float_ND.T).astype(np.int64), exact_NN)


def test_a_quantised_direction_is_that_of_the_vector() -> None:
    vector_ND = np.random.default_rng(1).normal(size=(100, 512)) * np.logspace(-3, 3, 100)[:, None]
    cosine_N = (quantise(vector_ND) * vector_ND).sum(axis=1) / np.linalg.norm(vector_ND, axis=1)
    np.testing.assert_allclose(cosine_N / np.linalg.norm(quantise(vector_ND).astype(float), axis=1), 1, atol=3e-6)
    assert not quantise(np.zeros((1, 5))).any()


def test_nearest_clusters_are_those_of_a_sort() -> None:
    rng = np.random.default_rng(3)
    vector_ND, centroid_KD = quantise(rng.normal(size=(50, 8))), quantise(rng.normal(size=(20, 8)))
    centroid_KD[7] = centroid_KD[3]  # of equal ones the first
    product_NK = vector_ND.astype(np.int64) @ centroid_KD.astype(np.int64).T
    expected = np.argsort(-product_NK, axis=1, kind="stable")[:, :5]
    np.testing.assert_array_equal(find_nearest(vector_ND, centroid_KD, 5), expected)


def test_separate_clouds_become_clusters() -> None:
    rng = np.random.default_rng(4)
    cloud_N = rng.integers(0, 5, 1000)
    centre_CD = rng.normal(size=(5, 32))
    vector_ND = quantise(centre_CD[cloud_N] + 0.05 * rng.normal(size=(1000, 32)))
    first_C = np.array([np.flatnonzero(cloud_N == cloud)[0] for cloud in range(5)])
    ordered = np.concatenate([vector_ND[first_C], vector_ND])
    nearest_N = find_nearest(vector_ND, train_centroids(ordered, 5), 1)[:, 0]
    np.testing.assert_array_equal(nearest_N, cloud_N)


def test_a_cluster_without_vectors_keeps_its_centroid() -> None:
    sample_ND = quantise(np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    np.testing.assert_array_equal(train_centroids(sample_ND, 3), sample_ND)
